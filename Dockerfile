# One image for every service: the subcommand says which.
# Not run by the project's tests, which need no container engine; the commands inside are the same as theirs.
FROM rust:1.95-bookworm AS build
WORKDIR /source
COPY . .
RUN cargo build --release --locked -p nearby

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --home-dir /nonexistent nearby
COPY --from=build /source/target/release/nearby /usr/local/bin/nearby
USER nearby
ENTRYPOINT ["nearby"]
