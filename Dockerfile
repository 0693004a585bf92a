# docker build -t peerstore .
# What is copied is named here, so nothing else of the checkout, .git least of all, is needed.
FROM python:3.13-slim-trixie AS python

FROM python AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY requirements.lock ./
# The lock's parts: what runs goes into the image, what builds stays here, what tests is left out.
RUN sed '/^# Build$/,$d' requirements.lock > run.lock \
    && sed -n '/^# Build$/,/^# Test/p' requirements.lock > build.lock \
    && python -m venv --without-pip /opt/peerstore \
    && pip --python /opt/peerstore/bin/python install --require-hashes --only-binary :all: -r run.lock \
    && pip install --require-hashes --only-binary :all: -r build.lock
COPY pyproject.toml README.md LICENSE config.example.toml ./
COPY migrations migrations
COPY peerstore peerstore
RUN python -m hatchling build -t wheel -d dist \
    && pip --python /opt/peerstore/bin/python install --no-index --no-deps dist/*.whl

FROM python
ARG VERSION=""
ARG REVISION=""
ARG SOURCE=""
LABEL org.opencontainers.image.title="peerstore" \
      org.opencontainers.image.description="A Lightning peer that keeps the encrypted channel backups of other peers" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="$SOURCE"
RUN useradd --uid 1000 --create-home peerstore && install -d -o peerstore -g peerstore -m 700 /data
COPY --from=build /opt/peerstore /opt/peerstore
# The root may be read-only: only /data is written, which is also where SQLite puts what is
# temporary when it finds no /tmp.
ENV PATH=/opt/peerstore/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PEERSTORE_DATA_DIR=/data
USER 1000
WORKDIR /data
VOLUME /data
# Peers; and metrics, health and the status page where they are made to listen beyond loopback.
EXPOSE 9737 9738
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=60s --timeout=15s --start-period=60s CMD ["peerstore", "info", "--running"]
ENTRYPOINT ["peerstore"]
CMD ["run"]
