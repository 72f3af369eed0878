# Two images of one checkout:
#
#   docker build --target launcher -t launch .                 the command line, small, non-root
#   docker build --target job -t USER/launch-job .             what a Job runs in, with the training stack in it
#
# The bases are arguments, so that it also builds where no public registry is reached; docs/containers.md shows how, and
# says what is in each image and why. No HEALTHCHECK: neither image serves anything, each runs one command to its end.

ARG LAUNCHER_BASE=docker.io/library/python:3.12-slim-bookworm
# Jobs' own default image (launcher/data/stack.toml; a test compares).
ARG JOB_BASE=ghcr.io/astral-sh/uv:python3.12-bookworm


# The launcher's environment, from the lock: first what it depends on, which changes seldom, then its wheel.
FROM ${LAUNCHER_BASE} AS build
# uv.lock's own (a test compares).
ARG UV_VERSION=0.13.9
ENV UV_PROJECT_ENVIRONMENT=/opt/launch \
    UV_PYTHON_DOWNLOADS=never \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1
RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir "uv==${UV_VERSION}"
WORKDIR /src
COPY pyproject.toml uv.lock ./
RUN /opt/uv/bin/uv sync --quiet --locked --no-dev --no-install-project
COPY README.md LICENSE ./
COPY templates templates
COPY launcher launcher
RUN /opt/uv/bin/uv sync --quiet --locked --no-dev --no-editable


FROM ${LAUNCHER_BASE} AS launcher
RUN useradd --uid 1000 --create-home launch
COPY --from=build /opt/launch /opt/launch
ENV PATH=/opt/launch/bin:$PATH \
    HOME=/home/launch
# Runs, caches and config.toml; with a read-only root file system this is what stays writable.
VOLUME /home/launch
WORKDIR /home/launch
# By number, so that Kubernetes can see that it is not root.
USER 1000:1000
ENTRYPOINT ["launch"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="launch" \
      org.opencontainers.image.description="Fine-tune a model on Hugging Face Jobs with one command" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"


# Only the headers of the scripts, so that a changed script that asks for the same stack installs nothing anew.
FROM ${JOB_BASE} AS headers
COPY job_scripts /scripts
WORKDIR /headers
RUN for script in sft_text.py sft_vlm.py; do \
      sed -e '/^# \[tool\.hf-jobs\]$/,/^# \/\/\/$/{/^# \/\/\/$/!d}' -e '/^# \/\/\/$/q' "/scripts/$script" >"$script"; \
    done


FROM ${JOB_BASE} AS job
# Triton compiles its launcher with a C compiler. Jobs' image has one; a slimmer base may not.
# Debian keeps one version of a package per suite, so a pin would only break later builds.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# Outside of any home: which user a Job runs as, and with which HOME, is the service's matter.
ENV UV_CACHE_DIR=/opt/uv \
    UV_PYTHON_DOWNLOADS=never
COPY --from=headers /headers /opt/launch-job
# uv finds a script's environment by the script's path, and Jobs mounts it at /data. One layer: both environments are hard
# links into the cache, and the second one's byte code is the first one's. The last lines are the promise of this image:
# without a network nothing is missing.
RUN mkdir -p /data \
    && cp /opt/launch-job/*.py /data/ \
    && uv sync --quiet --script /data/sft_text.py --compile-bytecode \
    && uv sync --quiet --script /data/sft_vlm.py \
    && vision="$(echo "$UV_CACHE_DIR"/environments-v*/sft-vlm-*/lib)" \
    && env --chdir "$UV_CACHE_DIR"/environments-v*/sft-text-*/lib \
      find . -name '*.pyc' -exec cp --link --parents --target-directory "$vision" {} + \
    && for script in /data/*.py; do uv run --offline --script "$script"; done \
    && rm /data/*.py \
    && chmod -R a+rwX "$UV_CACHE_DIR"
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="launch-job" \
      org.opencontainers.image.description="uv with the training stack of launch's scripts, for Hugging Face Jobs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
