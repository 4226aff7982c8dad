# dmopt as one static binary with the embedded runtime, in an image with nothing else but a shell for pipelines.
#
#   docker build -t dmopt .
#   docker run --rm -v "$PWD:/work" dmopt check models
#
# scripts/static_build.sh builds the same binary without Docker and tells whether it is static. ONNX Runtime is a shared
# library, which a static program cannot load, so the image has the embedded runtime alone.
FROM rust:1.95-alpine AS build
RUN apk add --no-cache musl-dev gcc
WORKDIR /dmopt
COPY . .
RUN cargo build --release --locked --no-default-features --features tract

FROM alpine:3
COPY --from=build /dmopt/target/release/dmopt /usr/local/bin/dmopt
WORKDIR /work
ENTRYPOINT ["dmopt"]
