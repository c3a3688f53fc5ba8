# syntax=docker/dockerfile:1
# One image for agent and controller. A release pins the base image by digest, too:
#   docker build --build-arg BASE_DIGEST=sha256:... --build-arg VERSION=... --build-arg REVISION=$(git rev-parse HEAD) .
# Behind an index of your own: --secret id=pip,src=pip.conf; nothing of it is in the image.
ARG BASE=docker.io/library/python:3.11-slim-bookworm
ARG BASE_DIGEST=

FROM ${BASE}${BASE_DIGEST:+@${BASE_DIGEST}} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1
WORKDIR /src
RUN python -m venv /opt/nodemem
# Before the sources, which change more often. Wheels alone: nothing is compiled, so there is no compiler.
COPY image-requirements.txt ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/nodemem/bin/pip install --only-binary :all: --no-deps -r image-requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --only-binary :all: hatchling==1.33.0 \
 && pip wheel --no-deps --no-build-isolation --wheel-dir /tmp/wheel . \
 && /opt/nodemem/bin/pip install --no-deps /tmp/wheel/*.whl \
 && /opt/nodemem/bin/pip check \
 && /opt/nodemem/bin/pip uninstall --yes --quiet setuptools pip
# The root file system is read-only when it runs: without .pyc files every start would compile everything, which costs
# seconds and, in the controller, 60 MB. By hash and unchecked: file times differ between hosts and layers.
RUN python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/nodemem/lib

FROM ${BASE}${BASE_DIGEST:+@${BASE_DIGEST}}
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="nodemem" \
      org.opencontainers.image.description="Where a Kubernetes node's memory went, and which process the OOM killer will take" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The official image comes without .pyc files of the standard library, but with pip.
RUN rm -rf /usr/local/bin/pip* /usr/local/lib/python3.*/ensurepip /usr/local/lib/python3.*/site-packages/* \
 && python -m compileall -q -j 0 --invalidation-mode unchecked-hash -x lib2to3/tests /usr/local/lib/python3.*
COPY --from=build /opt/nodemem /opt/nodemem
ENV PATH=/opt/nodemem/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# The controller runs like this. The agent's pod asks for user 0 with a few capabilities, to read other users' processes.
USER 65532:65532
ENTRYPOINT ["nodemem"]
