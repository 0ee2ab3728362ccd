# syntax=docker/dockerfile:1
# The newest Go: its server limits the values of a header (pkg/ingress/headers_go127.go).
FROM --platform=$BUILDPLATFORM golang:1.27 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=devel
ARG TARGETOS
ARG TARGETARCH
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath \
      -ldflags "-s -w -X github.com/postwire/postwire/pkg/app.release=$VERSION" \
      -o /root/image/usr/local/bin/postwire ./cmd/postwire
# The licenses of what is built in.
RUN sh deploy/notices /root/image/usr/share/licenses/postwire
# All else that the image has: certificate authorities, a user, and a folder
# that is its own. The zones of time are in the binary.
RUN mkdir -p /root/image/etc/ssl/certs /root/image/var/lib /root/data \
 && cp /etc/ssl/certs/ca-certificates.crt /root/image/etc/ssl/certs/ \
 && echo 'nonroot:x:65532:65532:nonroot:/var/lib/postwire:/sbin/nologin' >/root/image/etc/passwd \
 && echo 'nonroot:x:65532:' >/root/image/etc/group

# No shell, no package.
FROM scratch
ARG VERSION=devel
LABEL org.opencontainers.image.title="postwire" \
      org.opencontainers.image.description="Relays webhooks to message brokers, and loses none" \
      org.opencontainers.image.source="https://github.com/postwire/postwire" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
COPY --from=build /root/image /
COPY --from=build --chown=65532:65532 /root/data /var/lib/postwire
ENV PATH=/usr/local/bin
# The journal is all that is written: the rest may be mounted read-only
# (docker run --read-only -v postwire:/var/lib/postwire …).
VOLUME /var/lib/postwire
WORKDIR /var/lib/postwire
# A number, for Kubernetes does not look names up (runAsNonRoot).
USER 65532:65532
EXPOSE 8080 9090
ENTRYPOINT ["postwire"]
CMD ["serve", "-c", "/etc/postwire/postwire.yaml"]
