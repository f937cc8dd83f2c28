/** grpc.health.v1 as a kubelet's probe asks it: plaintext, one Check per call. */
import { Client, credentials } from '@grpc/grpc-js';
import { loadServices } from '../../src/extproc/services.ts';

export type HealthClient = {
  /** @returns `SERVING`, `NOT_SERVING`, …; rejects with gRPC's error, NOT_FOUND for an unknown service */
  check(service: string): Promise<string>;
  close(): void;
};

const DEADLINE_MS = 10_000;

/** @param address `ip:port` */
export function createHealthClient(address: string): HealthClient {
  const { Check } = loadServices().health;
  const client = new Client(address, credentials.createInsecure());
  return {
    check: (service) =>
      new Promise((resolve, reject) => {
        client.makeUnaryRequest<object, { status?: string }>(
          Check!.path,
          Check!.requestSerialize,
          Check!.responseDeserialize as (bytes: Buffer) => { status?: string },
          { service },
          { deadline: Date.now() + DEADLINE_MS },
          (error, answer) => (error === null ? resolve(answer?.status ?? 'UNKNOWN') : reject(error)),
        );
      }),
    close: () => client.close(),
  };
}
