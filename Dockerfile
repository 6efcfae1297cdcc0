# Hearth in a container: its data in /data, clients on port 8008.
FROM rust:1-bookworm AS build
WORKDIR /source
COPY . .
# Without its line tables the binary is a fifth as large; panics still say where they were.
RUN cargo build --release --locked --bin hearth \
    && strip --strip-debug target/release/hearth

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin hearth \
    && install -d -o hearth -g hearth -m 700 /data
COPY --from=build /source/target/release/hearth /usr/local/bin/hearth
USER hearth
WORKDIR /data
ENV HEARTH_DATA_DIR=/data HEARTH_BIND=0.0.0.0:8008
VOLUME /data
EXPOSE 8008 8448
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["curl", "--silent", "--fail", "--output", "/dev/null", "http://127.0.0.1:8008/health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["hearth"]
CMD ["serve"]
