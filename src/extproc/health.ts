/**
 * gRPC health for probes and data planes: Check, Watch and List over one shared status. `liveness` says the process
 * answers and nothing else; every other service follows readiness. Why it is not ready is the admin port's business.
 */
import {
  status as grpcStatus,
  type sendUnaryData,
  type ServerUnaryCall,
  type ServerWritableStream,
} from '@grpc/grpc-js';
import { HEALTH_SERVICES } from './protocol.ts';

export type ServingStatus = 'SERVING' | 'NOT_SERVING';

type CheckRequest = { service?: string };
type CheckResponse = { status: ServingStatus | 'SERVICE_UNKNOWN' };
type ListResponse = { statuses: Record<string, CheckResponse> };
type WatchCall = ServerWritableStream<CheckRequest, CheckResponse>;

export type Health = {
  setServing(serving: ServingStatus): void;
  /** Ends every Watch stream: they would hold up a shutdown for ever. */
  endWatches(): void;
  /** Handlers of grpc.health.v1.Health; may be added to several servers. */
  readonly handlers: {
    Check(call: ServerUnaryCall<CheckRequest, CheckResponse>, callback: sendUnaryData<CheckResponse>): void;
    List(call: ServerUnaryCall<unknown, ListResponse>, callback: sendUnaryData<ListResponse>): void;
    Watch(call: WatchCall): void;
  };
};

/** Probes need a handful; more would be somebody filling our memory. */
const MAX_WATCHES = 1_000;

export function createHealth(): Health {
  const known: ReadonlySet<string> = new Set(HEALTH_SERVICES);
  const watches = new Set<WatchCall>();
  let serving: ServingStatus = 'NOT_SERVING';

  const statusOf = (service: string): CheckResponse | null => {
    if (!known.has(service)) return null;
    return { status: service === 'liveness' ? 'SERVING' : serving };
  };

  return {
    setServing(next) {
      if (next === serving) return;
      serving = next;
      for (const call of watches) {
        const service = call.request.service ?? '';
        if (known.has(service) && service !== 'liveness') call.write({ status: serving });
      }
    },
    endWatches() {
      for (const call of watches) call.end();
      watches.clear();
    },
    handlers: {
      Check(call, callback) {
        const found = statusOf(call.request.service ?? '');
        if (found !== null) callback(null, found);
        else callback({ code: grpcStatus.NOT_FOUND, details: 'unknown service' });
      },
      List(_call, callback) {
        const statuses: Record<string, CheckResponse> = {};
        for (const service of known) statuses[service] = statusOf(service)!;
        callback(null, { statuses });
      },
      Watch(call) {
        if (watches.size >= MAX_WATCHES) {
          call.emit('error', {
            code: grpcStatus.RESOURCE_EXHAUSTED,
            details: `too many health watches: limit ${MAX_WATCHES}`,
          });
          return;
        }
        watches.add(call);
        const forget = (): void => void watches.delete(call);
        call.on('cancelled', forget);
        call.on('close', forget);
        // An unknown service may become known later, so the protocol keeps such a stream open.
        call.write(statusOf(call.request.service ?? '') ?? { status: 'SERVICE_UNKNOWN' });
      },
    },
  };
}
