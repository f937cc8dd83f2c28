/** The two gRPC services, loaded from the .proto files beside the sources. Reads files: call it from `start`, not on import. */
import { fileURLToPath } from 'node:url';
import type { ServiceDefinition } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { EXT_PROC_SERVICE } from './protocol.ts';

export type Services = { readonly externalProcessor: ServiceDefinition; readonly health: ServiceDefinition };

/** The same place from src/ and from dist/. */
export const PROTO_DIR = fileURLToPath(new URL('../../proto', import.meta.url));

/** Shapes of decoded messages: absent means default, enums by name, bytes stay Buffers. */
const LOADER_OPTIONS = {
  keepCase: true,
  longs: Number,
  enums: String,
  defaults: false,
  oneofs: true,
  arrays: true,
} as const;

/** With a general codec for all messages: what clients use. */
export function loadServices(): Services {
  const definition = loadSync(['envoy/service/ext_proc/v3/external_processor.proto', 'grpc/health/v1/health.proto'], {
    ...LOADER_OPTIONS,
    includeDirs: [PROTO_DIR],
  });
  return {
    externalProcessor: definition[EXT_PROC_SERVICE] as ServiceDefinition,
    health: definition['grpc.health.v1.Health'] as ServiceDefinition,
  };
}
