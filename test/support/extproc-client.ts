/** An ext_proc client on real gRPC, one connection: for tests of the server without an Envoy. */
import {
  credentials,
  makeGenericClientConstructor,
  type ChannelCredentials,
  type ClientDuplexStream,
} from '@grpc/grpc-js';
import type { BodySendMode } from '../../src/extproc/messages.ts';
import { loadServices } from '../../src/extproc/services.ts';
import { announced, answerOf, requestBody, requestHeaders, type Answer, type WireRequest } from './extproc-messages.ts';

export type StreamStatus = { readonly code: number; readonly details: string };

export type ProcessStream = {
  /** Merges the parts into one message and sends it. */
  send(...parts: WireRequest[]): void;
  /** The next answer; rejects when the stream ends first. */
  next(): Promise<Answer>;
  /** Every answer so far. */
  readonly answers: readonly Answer[];
  /** Resolves when the stream is over, however it ended. */
  readonly status: Promise<StreamStatus>;
  halfClose(): void;
  /** RST_STREAM, as Envoy ends its streams. */
  reset(): void;
  /** Stops reading answers: a slow consumer. */
  pause(): void;
  resume(): void;
};

export type ExtProcClient = {
  open(): ProcessStream;
  /** One whole request as Envoy would send it in the mode; resolves with all answers to it, then half-closes. */
  request(spec: {
    mode: BodySendMode;
    body: string | Buffer | null;
    headers?: Record<string, string>;
  }): Promise<Answer[]>;
  close(): void;
};

type Constructor = new (
  address: string,
  creds: ChannelCredentials,
  options: object,
) => {
  Process(): ClientDuplexStream<WireRequest, object>;
  close(): void;
};

const MAX_MESSAGE_BYTES = 64 * 1024 * 1024;

/** @param address `host:port` as `start` returned it */
export function createExtProcClient(
  address: string,
  channelCredentials: ChannelCredentials = credentials.createInsecure(),
): ExtProcClient {
  const Client = makeGenericClientConstructor(loadServices().externalProcessor, 'ExternalProcessor');
  const client = new (Client as unknown as Constructor)(address, channelCredentials, {
    'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
    'grpc.max_send_message_length': MAX_MESSAGE_BYTES,
    // One client is one connection, as one Envoy worker is.
    'grpc.use_local_subchannel_pool': 1,
  });

  function open(): ProcessStream {
    const call = client.Process();
    const answers: Answer[] = [];
    const waiting: { resolve(answer: Answer): void; reject(error: Error): void }[] = [];
    let nTaken = 0;
    let over: StreamStatus | null = null;
    const status = new Promise<StreamStatus>((resolve) => {
      call.on('status', ({ code, details }) => {
        over = { code, details };
        for (const { reject } of waiting.splice(0)) reject(new Error(`stream ended with ${code}: ${details}`));
        resolve(over);
      });
    });
    call.on('error', () => undefined);
    call.on('data', (raw: object) => {
      const answer = answerOf(raw);
      answers.push(answer);
      const first = waiting.shift();
      if (first === undefined) return;
      nTaken += 1;
      first.resolve(answer);
    });
    return {
      send: (...parts) => void call.write(Object.assign({}, ...parts)),
      next() {
        const ready = answers[nTaken];
        if (ready !== undefined) {
          nTaken += 1;
          return Promise.resolve(ready);
        }
        if (over !== null) return Promise.reject(new Error(`stream ended with ${over.code}: ${over.details}`));
        return new Promise((resolve, reject) => waiting.push({ resolve, reject }));
      },
      answers,
      status,
      halfClose: () => call.end(),
      reset: () => call.cancel(),
      pause: () => void call.pause(),
      resume: () => void call.resume(),
    };
  }

  return {
    open,
    async request({ mode, body, headers = {} }) {
      const stream = open();
      stream.send(requestHeaders({ headers, endOfStream: body === null }), announced(mode));
      if (body !== null && mode !== 'NONE') {
        if (mode !== 'FULL_DUPLEX_STREAMED') {
          const first = await stream.next();
          if (first.immediate !== null) return [first];
        }
        stream.send(requestBody(body));
      }
      await answered(stream, body !== null && mode === 'FULL_DUPLEX_STREAMED' ? 'echo' : 'one');
      stream.halfClose();
      await stream.status;
      return [...stream.answers];
    },
    close: () => client.close(),
  };
}

/** As an Envoy does, nothing is closed before it was answered; a stream that failed has nothing more to say. */
async function answered(stream: ProcessStream, what: 'one' | 'echo'): Promise<void> {
  try {
    for (;;) {
      const { immediate, echo } = await stream.next();
      if (what === 'one' || immediate !== null || echo?.endOfStream === true) return;
    }
  } catch {
    await stream.status;
  }
}

export type HealthClient = {
  check(service: string): Promise<string>;
  list(): Promise<Record<string, { status: string }>>;
  /** Statuses as they come; `ended` resolves when the server ends the watch. */
  watch(service: string): { readonly statuses: string[]; readonly ended: Promise<number> };
  close(): void;
};

/** Statuses by name; a refused check gives its gRPC code as text. */
export function createHealthClient(address: string): HealthClient {
  type Callback<T> = (error: { code: number } | null, value?: T) => void;
  type Raw = {
    Check(request: object, callback: Callback<{ status: string }>): void;
    List(request: object, callback: Callback<{ statuses: Record<string, { status: string }> }>): void;
    Watch(request: object): ClientDuplexStream<never, { status: string }>;
    close(): void;
  };
  const Client = makeGenericClientConstructor(loadServices().health, 'Health') as unknown as new (
    address: string,
    creds: ChannelCredentials,
    options: object,
  ) => Raw;
  const client = new Client(address, credentials.createInsecure(), { 'grpc.use_local_subchannel_pool': 1 });
  return {
    check: (service) =>
      new Promise((resolve) => {
        client.Check({ service }, (error, value) => resolve(error ? String(error.code) : value!.status));
      }),
    list: () =>
      new Promise((resolve, reject) => {
        client.List({}, (error, value) => (error ? reject(error as unknown as Error) : resolve(value!.statuses)));
      }),
    watch(service) {
      const statuses: string[] = [];
      const call = client.Watch({ service });
      call.on('error', () => undefined);
      call.on('data', ({ status }: { status: string }) => void statuses.push(status));
      return { statuses, ended: new Promise((resolve) => call.on('status', ({ code }) => resolve(code))) };
    },
    close: () => client.close(),
  };
}
