/** The tokenizer of `tokens-server.ts`, started, told how to behave, and ended. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import type { ServerOrder } from './tokens-server.ts';

export async function startServerProcess() {
  const file = new URL('./tokens-server.ts', import.meta.url).pathname;
  const child = spawn(process.execPath, [file], { stdio: ['pipe', 'pipe', 'inherit'] });
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  const next = async (): Promise<string> => {
    const { value, done } = await lines.next();
    if (done === true) throw new Error('the tokenizer process ended');
    return value as string;
  };
  const url = await next();
  return {
    url,
    /** @returns the calls it has got so far */
    async order(order: ServerOrder): Promise<number> {
      child.stdin.write(`${JSON.stringify(order)}\n`);
      return Number(await next());
    },
    async stop(): Promise<void> {
      const exit = once(child, 'exit');
      child.stdin.end();
      await exit;
    },
    /** As a process dies: connections are refused from now on. */
    async kill(): Promise<void> {
      const exit = once(child, 'exit');
      child.kill('SIGKILL');
      await exit;
    },
  };
}
