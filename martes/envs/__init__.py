"""The border: every environment becomes one VectorEnv here."""
