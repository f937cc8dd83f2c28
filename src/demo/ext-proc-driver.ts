/**
 * A gateway for machines without Envoy: asks Warmpath over ext_proc with the messages Envoy sends in BUFFERED mode, then
 * the request goes straight to the endpoint it named. The side stream stays open until the answer is over, as Envoy's does
 * with `response_trailer_mode: SEND`. No retries, no fallback policy, no health checks: those are Envoy's own.
 */
import { Client, credentials, type ClientDuplexStream, type ServiceDefinition } from '@grpc/grpc-js';
import { loadServices } from '../extproc/services.ts';
import type { Gateway, Way } from './gateway.ts';

/** What of a ProcessingResponse is looked at. */
type Answer = {
  readonly request_headers?: unknown;
  readonly request_body?: {
    readonly response?: { readonly header_mutation?: { readonly set_headers?: readonly SetHeader[] } };
  };
  readonly immediate_response?: { readonly status?: { readonly code?: string | number }; readonly body?: Buffer };
};
type SetHeader = { readonly header: { readonly key: string; readonly raw_value: Buffer } };
type SideStream = ClientDuplexStream<object, Answer>;

const DESTINATION_HEADER = 'x-gateway-destination-endpoint';
/** What Envoy waits by the configuration in envoy/. */
const MESSAGE_TIMEOUT_MS = 500;
const PROTOCOL_CONFIG = { request_body_mode: 'BUFFERED', response_body_mode: 'NONE' };

/** @param address `ip:port` of Warmpath's gRPC listener */
export function createExtProcDriver(address: string): Gateway {
  const service: ServiceDefinition = loadServices().externalProcessor;
  const process = service['Process']!;
  const client = new Client(address, credentials.createInsecure());

  return {
    async open(path, headers, body) {
      const stream: SideStream = client.makeBidiStreamRequest(
        process.path,
        process.requestSerialize,
        (bytes: Buffer) => process.responseDeserialize(bytes) as Answer,
      );
      const answers = answersOf(stream);
      stream.write({ request_headers: { headers: headerMap(path, headers) }, protocol_config: PROTOCOL_CONFIG });
      const first = await answers.next();
      if (first.immediate_response) return refused(stream, first);
      stream.write({ request_body: { body, end_of_stream: true } });
      const second = await answers.next();
      if (second.immediate_response) return refused(stream, second);
      const set = second.request_body?.response?.header_mutation?.set_headers ?? [];
      const changes = Object.fromEntries(set.map(({ header }) => [header.key, header.raw_value.toString()]));
      const destination = changes[DESTINATION_HEADER];
      if (destination === undefined) return refused(stream, second);
      return {
        kind: 'forward',
        address: destination.split(',')[0]!,
        headers: changes,
        end: () => void stream.end(),
      };
    },
    close() {
      client.close();
      return Promise.resolve();
    },
  };
}

function refused(stream: SideStream, answer: Answer): Way {
  stream.end();
  const { status, body } = answer.immediate_response ?? {};
  const reason = answer.immediate_response
    ? `Warmpath answered ${status?.code ?? 'without a status'}: ${body?.toString() ?? ''}`
    : `Warmpath named no endpoint in its answer: ${Object.keys(answer).join(', ')}`;
  return { kind: 'refused', reason };
}

/** One answer per call, in order; rejects when none comes in time or the stream fails first. */
function answersOf(stream: SideStream): { next(): Promise<Answer> } {
  const queue: Answer[] = [];
  let failure: Error | null = null;
  let wake: (() => void) | null = null;
  const settle = (): void => wake?.();
  stream.on('data', (answer: Answer) => {
    queue.push(answer);
    settle();
  });
  stream.on('error', (error: Error) => {
    failure ??= error;
    settle();
  });
  stream.on('end', () => {
    failure ??= new Error('Warmpath ended the side stream without an answer');
    settle();
  });
  return {
    async next() {
      if (queue.length === 0 && failure === null) {
        await new Promise<void>((resolve) => {
          const timer = setTimeout(() => {
            failure ??= new Error(`no answer from Warmpath within ${MESSAGE_TIMEOUT_MS} ms`);
            stream.cancel();
            resolve();
          }, MESSAGE_TIMEOUT_MS);
          wake = () => {
            clearTimeout(timer);
            resolve();
          };
        });
        wake = null;
      }
      const answer = queue.shift();
      if (answer === undefined) throw failure ?? new Error('no answer');
      return answer;
    },
  };
}

function headerMap(path: string, headers: Readonly<Record<string, string>>): object {
  const all = { ':method': 'POST', ':scheme': 'http', ':authority': 'demo', ':path': path, ...headers };
  return { headers: Object.entries(all).map(([key, value]) => ({ key, raw_value: Buffer.from(value) })) };
}
