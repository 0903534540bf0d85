# syntax=docker/dockerfile:1
# One image for every service: the subcommand says which.
# Not built by the project's tests, which need no container engine; what runs in it is what they run.
FROM rust:1.95-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ libssl-dev make pkg-config \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/source/target \
    cargo build --release --locked -p nearby && cp target/release/nearby /nearby

# The same Debian as above, so that the same libraries are there: libssl3 for Kafka with TLS. curl is for health checks.
FROM debian:12.11-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl libssl3 zlib1g \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /nearby /usr/local/bin/nearby
# A number, so that an orchestrator can see that it is not root.
USER 10001:10001
ENTRYPOINT ["nearby"]
