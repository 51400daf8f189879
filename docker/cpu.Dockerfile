# megatron_prime on CPUs, with the quickstart as its command: docs/containers.md.
#
#   docker build -f docker/cpu.Dockerfile -t megatron-prime:cpu .
#   docker run --rm megatron-prime:cpu

FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN pip install setuptools==84.2.1
COPY . /source
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels /source

FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d
# An index with CPU builds of torch makes the image gigabytes smaller: --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
# The sandbox of the code verifier. Debian keeps no old versions, so its own revision is not named.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends 'bubblewrap=0.8.0-*' \
    && rm -rf /var/lib/apt/lists/*
# In a layer of their own, because they change less often than the source.
COPY docker/requirements-cpu.txt /opt/megatron-prime/requirements.txt
RUN pip install --requirement /opt/megatron-prime/requirements.txt
COPY --from=build /wheels /opt/megatron-prime/wheels
RUN pip install --no-deps /opt/megatron-prime/wheels/*.whl \
    && pip check \
    && useradd --create-home --uid 1000 prime \
    && install --directory --owner=prime /runs
USER 1000
# Runs are written below the working directory: mount a volume here to keep them.
WORKDIR /runs
ENTRYPOINT ["megatron-prime"]
CMD ["quickstart", "--root", "quickstart"]
