# Builds the image that docker-compose.yml runs. The base images are arguments, so that a mirror's,
# or ones of your own, can stand in for them.
ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS build
# What librdkafka and libjpeg-turbo are built with, beside the image's C compiler.
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ libssl-dev make nasm pkg-config zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
# First the dependencies, against an empty crate: this layer stays until the manifest changes.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src benches \
    && touch src/lib.rs \
    && echo 'fn main() {}' | tee src/main.rs benches/bench.rs benches/roofline.rs >benches/rounds.rs \
    && cargo build --release --locked \
    && cargo clean --release --package selfstream
COPY config config
COPY benches benches
COPY src src
RUN cargo build --release --locked

# Images to send through a first topic: 70,000 of 28 px, 30 MB, under the MIT licence.
FROM ${RUNTIME_IMAGE} AS samples
RUN apt-get update \
    && apt-get install -y --no-install-recommends dataset-fashion-mnist

FROM ${RUNTIME_IMAGE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 10001 -g 10001 /var/lib/selfstream
COPY --from=samples /usr/share/datasets/fashion-mnist /usr/share/datasets/fashion-mnist
COPY --from=samples /usr/share/doc/dataset-fashion-mnist/copyright \
    /usr/share/doc/dataset-fashion-mnist/copyright
# Mount a file of your own there; it needs only what differs from the defaults.
COPY config/container.toml /etc/selfstream/config.toml
COPY --from=build /build/target/release/selfstream /usr/local/bin/selfstream

# Reachable from outside the container, which loopback, the default, is not; with a mounted file, too.
ENV SELFSTREAM__SERVER__LISTEN=0.0.0.0:8080
# By number, so that an orchestrator can tell that it is not root.
USER 10001:10001
WORKDIR /var/lib/selfstream
# Checkpoints and snapshots.
VOLUME /var/lib/selfstream
EXPOSE 8080
# Bash speaks enough HTTP for this; curl and what it brings would add 15 MB.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /livez HTTP/1.0\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 && [[ $status == 200 ]]"]
ENTRYPOINT ["selfstream"]
CMD ["run", "--config", "/etc/selfstream/config.toml"]
