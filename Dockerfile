# The server, the command line and the demo worker: one binary, in a small image that runs as nobody
# in particular and holds no secret.

FROM rust:1.95-bookworm AS build
WORKDIR /src

# The dependencies, in a layer that changes only with the manifests: compiled against empty crates.
COPY Cargo.toml Cargo.lock ./
COPY worker-sdk/Cargo.toml worker-sdk/
COPY worker-sdk/testing/Cargo.toml worker-sdk/testing/
RUN mkdir -p src worker-sdk/src worker-sdk/testing/src \
    && echo 'fn main() {}' | tee src/main.rs build.rs worker-sdk/build.rs >/dev/null \
    && touch src/lib.rs worker-sdk/src/lib.rs worker-sdk/testing/src/lib.rs \
    && cargo build --release --locked --bin leasehold

# The real sources. Cargo goes by their times, and these are older than what was just compiled.
COPY build.rs README.m[d] ./
COPY proto proto
COPY worker-sdk worker-sdk
COPY src src
RUN find build.rs proto src worker-sdk -type f -exec touch {} + \
    && cargo build --release --locked --bin leasehold

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --user-group --home-dir /nonexistent --shell /usr/sbin/nologin leasehold
COPY --from=build /src/target/release/leasehold /usr/local/bin/leasehold
USER 10001:10001
EXPOSE 7070
# Drains, and ends on its own: see `stop_grace_period` in docker-compose.yml.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 \
    CMD ["/usr/local/bin/leasehold", "doctor", "--probe"]
ENTRYPOINT ["/usr/local/bin/leasehold"]
CMD ["serve"]
