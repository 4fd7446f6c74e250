# A container for training, with or without a GPU.
#
#   docker build -t martes .                            on the CPU
#   docker build -t martes --build-arg DEVICE=cuda .    with CUDA; then docker run --gpus all ... training.device=cuda
#   mkdir -p runs && docker run --rm --user "$(id -u)" -v "$PWD/runs:/martes/runs" martes train qmix/smax-3m
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

# cpu: torch's small build; cuda: what the package index has for Linux, which brings CUDA's libraries.
ARG DEVICE=cpu
# docs/dependencies.md lists what there is.
ARG EXTRAS=mpe,lbf,jax

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 MPLBACKEND=agg HOME=/tmp
WORKDIR /martes

COPY constraints.txt ./
RUN case "$DEVICE" in \
      cpu) pip install -c constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu torch ;; \
      cuda) pip install -c constraints.txt torch ;; \
      *) echo "DEVICE is $DEVICE: give cpu or cuda" >&2; exit 2 ;; \
    esac

COPY pyproject.toml README.md LICENSE ./
COPY martes martes
RUN pip install -c constraints.txt ".[$EXTRAS]"

VOLUME /martes/runs
ENTRYPOINT ["martes"]
CMD ["train"]
