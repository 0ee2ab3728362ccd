# syntax=docker/dockerfile:1
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=devel
ARG TARGETOS
ARG TARGETARCH
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath \
      -ldflags "-s -w -X github.com/postwire/postwire/pkg/app.release=$VERSION" \
      -o /out/postwire ./cmd/postwire \
 && mkdir -p /out/data

# Certificate authorities, a user, and nothing else: no shell, no package.
FROM gcr.io/distroless/static-debian12:nonroot
ARG VERSION=devel
LABEL org.opencontainers.image.title="postwire" \
      org.opencontainers.image.description="Relays webhooks to message brokers, and loses none" \
      org.opencontainers.image.source="https://github.com/postwire/postwire" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
COPY --from=build /out/postwire /usr/local/bin/postwire
COPY --from=build --chown=nonroot:nonroot /out/data /var/lib/postwire
# The journal is all that is written: the rest may be mounted read-only
# (docker run --read-only -v postwire:/var/lib/postwire …).
VOLUME /var/lib/postwire
WORKDIR /var/lib/postwire
USER nonroot
EXPOSE 8080 9090
ENTRYPOINT ["postwire"]
CMD ["serve", "-c", "/etc/postwire/postwire.yaml"]
