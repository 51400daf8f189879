# megatron_prime on NVIDIA GPUs, with SGLang in an environment of its own: docs/containers.md.
#
#   docker build -f docker/cuda.Dockerfile -t megatron-prime:cuda .
#   docker run --rm --gpus all --ipc=host --ulimit memlock=-1 -v "$PWD/runs:/runs" megatron-prime:cuda

# Python 3.12, CUDA 13.1, torch 2.10, Transformer Engine 2.10 (megatron-core 0.16.1 accepts 2.9 to 2.11).
FROM nvcr.io/nvidia/pytorch:25.12-py3
# NVIDIA's constraints pin every package of the image, also those that this package needs in newer versions. These go into an
# environment on top of the image's, and whatever is built against the image's torch stays.
ENV PIP_CONSTRAINT="" PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
RUN apt-get update \
    && apt-get install --yes --no-install-recommends 'bubblewrap=0.9.0-*' 'python3.12-venv=3.12.3-*' \
    && rm -rf /var/lib/apt/lists/*
# First, because it is the largest layer and changes least. SGLang pins its own torch.
COPY docker/requirements-sglang-cuda.txt /opt/megatron-prime/
RUN python3 -m venv /opt/sglang \
    && /opt/sglang/bin/pip install --no-deps --requirement /opt/megatron-prime/requirements-sglang-cuda.txt
COPY docker/requirements-cuda.txt /opt/megatron-prime/
RUN python3 -m venv --system-site-packages /opt/venv \
    && /opt/venv/bin/pip install --no-deps --requirement /opt/megatron-prime/requirements-cuda.txt
ENV PATH=/opt/venv/bin:$PATH
COPY . /opt/megatron-prime/source
# The image's torchrun would start the ranks outside of the environment.
RUN pip install --no-deps --no-build-isolation /opt/megatron-prime/source \
    && printf '#!/bin/sh\nexec /opt/venv/bin/python -m torch.distributed.run "$@"\n' > /opt/venv/bin/torchrun \
    && chmod 755 /opt/venv/bin/torchrun \
    && python -c "import torch; assert torch.version.cuda, 'the torch of the image was replaced'" \
    && megatron-prime --version
# Runs are written below the working directory: mount a volume here to keep them. In configurations:
# rollout.sglang.python = "/opt/sglang/bin/python"
WORKDIR /runs
CMD ["megatron-prime", "doctor"]
