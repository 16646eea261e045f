# The operator's image: one static binary and the CA certificates.
#
#   docker build --tag mirror-operator .
#
# Where no image registry can be reached, tests/testbed/image packs a binary that was built outside:
# with BINARY=prebuilt the first stage is never looked at, and the context is a directory that holds `rootfs`.
ARG BINARY=build

FROM docker.io/library/rust:1-slim-bookworm AS build
WORKDIR /src
COPY . .
# An explicit target keeps the flag away from build scripts and procedural macros, which cannot be static.
RUN target=$(rustc --version --verbose | sed -n 's/^host: //p') \
 && RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release --bin mirror-operator --target "$target" \
 && install -D "target/$target/release/mirror-operator" /rootfs/mirror-operator \
 && install -D --mode=644 /etc/ssl/certs/ca-certificates.crt /rootfs/etc/ssl/certs/ca-certificates.crt

FROM scratch AS prebuilt
COPY rootfs /rootfs

FROM ${BINARY} AS binary

FROM scratch
ARG VERSION=0.1.0
ARG SOURCE=https://mirror-operator.io
LABEL org.opencontainers.image.title="mirror-operator" \
      org.opencontainers.image.description="Resyncs change-data-capture mirrors of PostgreSQL" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=binary /rootfs /
USER 65532:65532
ENTRYPOINT ["/mirror-operator"]
