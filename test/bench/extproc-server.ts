/**
 * One server under load, in a process of its own: the product, or a null server that only answers. Told what to be by its
 * arguments, asked for its CPU time over IPC. `extproc.bench.ts` starts it.
 */
import { ServerCredentials, type ServerDuplexStream } from '@grpc/grpc-js';
import { createApp } from '../../src/app.ts';
import { systemClock } from '../../src/clock.ts';
import { loadConfig } from '../../src/config.ts';
import { bind, createGrpcServer } from '../../src/extproc/grpc-server.ts';
import { loadServices } from '../../src/extproc/services.ts';
import { silentLog } from '../../src/log.ts';

const MAX_BYTES = 40 * 1024 * 1024;

/** The least an ext_proc server can do: decode, answer every message at once, choose nothing. */
async function startNull(): Promise<{ address: string; stop(): Promise<void> }> {
  const server = createGrpcServer({ maxReceiveBytes: MAX_BYTES, maxStreamsPerConnection: 4096 });
  type Raw = {
    request: string;
    request_body?: { body?: Buffer; end_of_stream?: boolean };
    protocol_config?: { request_body_mode?: string };
  };
  server.addService(loadServices().externalProcessor, {
    Process(call: ServerDuplexStream<Raw, object>) {
      let echoes = false;
      call.on('data', (raw: Raw) => {
        if (raw.protocol_config?.request_body_mode === 'FULL_DUPLEX_STREAMED') echoes = true;
        if (raw.request !== 'request_body' || !echoes) return call.write({ [raw.request]: {} });
        const { body, end_of_stream } = raw.request_body!;
        return call.write({
          request_body: { response: { body_mutation: { streamed_response: { body, end_of_stream } } } },
        });
      });
      call.on('end', () => call.end());
      call.on('error', () => undefined);
    },
  });
  const address = await bind(server, '127.0.0.1:0', ServerCredentials.createInsecure(), 'bench');
  return { address, stop: async () => server.forceShutdown() };
}

async function startProduct(sections: object): Promise<{ address: string; stop(): Promise<void> }> {
  const file = {
    server: {
      grpcListen: '127.0.0.1:0',
      healthListen: '127.0.0.1:0',
      adminListen: '127.0.0.1:0',
      drainDelayMs: 0,
      drainTimeoutMs: 0,
    },
    ...sections,
  };
  const loaded = loadConfig({ file: 'bench.json', readFile: () => JSON.stringify(file), env: {}, sets: [] });
  if (loaded.kind === 'mistakes') throw new Error(loaded.mistakes.join('\n'));
  const app = createApp(loaded.config, { log: silentLog, clock: systemClock });
  return { address: (await app.start()).grpc, stop: app.stop };
}

const [kind, sections] = process.argv.slice(2);
const { address, stop } =
  kind === 'null' ? await startNull() : await startProduct(JSON.parse(sections ?? '{}') as object);

process.on('message', () => {
  const { user, system } = process.cpuUsage();
  process.send!({ cpuUs: user + system, rssBytes: process.memoryUsage().rss });
});
process.on('disconnect', () => void stop().finally(() => process.exit(0)));
process.send!({ address });
