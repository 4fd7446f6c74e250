"""PPO balances CartPole in one call; then the trained policy plays an episode in a loop of one's own."""

import sys

import gymnasium

import martes


def main(steps=500_000):
    """Trains for so many environment steps, tells how the return rose, and plays."""
    run = martes.train(
        "ippo/gymnasium:CartPole-v1",  # one agent is a team of one
        steps=steps,
        **{
            "evaluation.every": steps // 5,
            "evaluation.background": True,  # test episodes are played in a process beside training
            "training.threads": 1,
        },
    )
    for row in run.metrics():
        if row["kind"] == "evaluation":
            print(f"after {row['step']:,} steps the return is {row['evaluation/return']:.0f}")

    policy = run.policy()  # of the newest checkpoint
    env = gymnasium.make("CartPole-v1")
    seen, _ = env.reset(seed=0)
    lived, is_over = 0, False
    while not is_over:
        (action,) = policy.act(seen[None])  # agent feature
        seen, _, has_ended, is_late, _ = env.step(action)
        lived, is_over = lived + 1, has_ended or is_late
    print(f"an episode of {lived} steps")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
