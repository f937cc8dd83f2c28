# syntax=docker/dockerfile:1
# What runs is what `npm pack` ships, with the production dependencies of the lock file, as a user without rights on a base
# without shell or package manager. `make image-check` runs the same files without Docker.

# The version that package.json pins, so that tests and image run on the same Node.
ARG NODE_IMAGE=node:24.21.0-trixie-slim
# glibc, libstdc++ and CA certificates, nothing else; pin it by digest for builds that must be identical.
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian13:nonroot

FROM ${NODE_IMAGE} AS build
WORKDIR /src
COPY package.json package-lock.json ./
# The `node` package brings a second Node for machines without the right one; here it is the image's.
RUN npm ci --no-audit --no-fund --ignore-scripts
COPY tsconfig.json tsconfig.build.json LICENSE README.md ./
COPY src src
COPY proto proto
COPY envoy envoy
RUN node node_modules/typescript/bin/tsc -p tsconfig.build.json && npm pack --ignore-scripts --pack-destination /tmp

FROM ${NODE_IMAGE} AS production
WORKDIR /app
COPY --from=build /tmp/warmpath-*.tgz /tmp/
RUN tar -xzf /tmp/warmpath-*.tgz --strip-components=1
COPY package-lock.json ./
COPY image/prune.sh /tmp/
# zeromq ships its native part for every platform in the package: no script has to run for it.
RUN npm ci --omit=dev --no-audit --no-fund --ignore-scripts && sh /tmp/prune.sh /app linux

FROM ${RUNTIME_IMAGE}
ARG VERSION=unknown
LABEL org.opencontainers.image.title=warmpath \
      org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.version=${VERSION}
COPY --from=production /usr/local/bin/node /usr/local/bin/node
COPY --from=production /app /app
WORKDIR /app
ENV NODE_ENV=production
# By number, because `runAsNonRoot` cannot judge a name.
USER 65532:65532
EXPOSE 9002 9003 9090
# No shell between the kubelet and the process: SIGTERM arrives.
# A small young generation: ARCHITECTURE.md says why.
ENTRYPOINT ["/usr/local/bin/node", "--max-semi-space-size=4", "--no-wasm-code-gc", "/app/dist/main.js"]
CMD ["serve"]
