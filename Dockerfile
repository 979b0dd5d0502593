# syntax=docker/dockerfile:1
# The server as an image.
#
#   docker build -t tts-server .                     CUDA: torch from PyPI brings its own CUDA libraries; driver on the host
#   docker build -t tts-server:cpu --target cpu .    no CUDA: 3 GB less
#   docker build -t tts-server:csm --target with-weights --secret id=hf_token,env=HF_TOKEN .
#
# Weights are downloaded at run time into the volume /app/models; only `with-weights` brings its own. Weights in the
# host's Hugging Face cache are read with -v ~/.cache/huggingface/hub:/hub:ro -e HF_HUB_CACHE=/hub. The token is a
# BuildKit secret there and a run-time variable elsewhere, so no layer holds one.
ARG PYTHON_VERSION=3.12
ARG DEBIAN=slim-bookworm

FROM python:${PYTHON_VERSION}-${DEBIAN} AS base
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*

# ---- libraries, in a virtual environment of their own: the last stages copy it and nothing of how it was made

FROM base AS lock
WORKDIR /src
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/venv
COPY constraints.txt ./
COPY locks locks

# Pip checks each file against its hash in locks/. They hold all extras but `ray`.
FROM lock AS libraries-cuda
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --require-hashes --no-deps -r locks/torch-cuda.txt \
    && python -m pip install --require-hashes --no-deps -r locks/server.txt

FROM lock AS libraries-cpu
# This index has the build of torch without CUDA, under the same version. It states the hashes of its files itself.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --constraint constraints.txt --index-url "${TORCH_INDEX}" --no-deps torch \
    && python -m pip install --require-hashes --no-deps -r locks/server.txt

# ---- the kernels for CPUs, for all instruction sets of this architecture: the images have no C++ compiler

FROM base AS kernels
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY app/nn/native /src
RUN python /src/library.py /kernels

# ---- the server, but for its libraries and its code

FROM base AS server
WORKDIR /app
# The folders exist in the image and are the user's, so that new named volumes on them are, too.
RUN groupadd --gid 10001 tts \
    && useradd --uid 10001 --gid tts --no-create-home --home-dir /app tts \
    && mkdir models cloned_voices voice_references audio_cache conversations hub jobs books keys lexicons usage logs \
    && chown tts:tts . models cloned_voices voice_references audio_cache conversations hub jobs books keys lexicons usage logs
COPY LICENSE NOTICE ./
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TTS_DATA_DIR=/app \
    HOST=0.0.0.0 \
    PORT=8000
EXPOSE 8000
# Liveness only: 503 once no engine can answer any more. Balancers and orchestrators ask /ready.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-m", "app.healthcheck"]
USER 10001:10001
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["python", "-m", "app.main"]

# ---- targets

FROM server AS cpu
COPY --from=libraries-cpu /opt/venv /opt/venv
COPY app app
COPY --from=kernels /kernels app/nn/native/prebuilt

FROM server AS cuda
# Triton compiles its launcher with a C compiler when the first kernel runs, and keeps the result.
USER root
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
USER 10001:10001
ENV TRITON_CACHE_DIR=/app/models/cache/triton
COPY --from=libraries-cuda /opt/venv /opt/venv
COPY app app
COPY --from=kernels /kernels app/nn/native/prebuilt

FROM cuda AS with-weights
ARG TTS_ENGINE=csm
ENV TTS_ENGINE=${TTS_ENGINE}
RUN --mount=type=secret,id=hf_token,uid=10001 \
    HF_TOKEN="$(cat /run/secrets/hf_token 2>/dev/null || true)" python -m app.cli download "${TTS_ENGINE}"

# The default target is the last one.
FROM cuda
