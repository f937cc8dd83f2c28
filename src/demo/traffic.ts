/** Sends a workload through a gateway, open loop, and keeps what came of every request. */
import { Agent } from 'undici';
import { sendChat, type ChatOutcome } from './chat-client.ts';
import type { Gateway } from './gateway.ts';
import type { Conversation, Message, SentChat, Workload } from './workload.ts';

export type TrafficResult = {
  /** In the order the requests began. */
  readonly requests: readonly { readonly messages: readonly Message[]; readonly outcome: ChatOutcome }[];
  readonly durationMs: number;
};

export type TrafficOptions = {
  readonly signal: AbortSignal;
  /** Told after every answer. */
  readonly onAnswered?: (nAnswered: number) => void;
};

/** Rejects with the signal's reason when it aborts; failures of requests are part of the result. */
export async function runTraffic(
  workload: Workload,
  gateway: Gateway,
  options: TrafficOptions,
): Promise<TrafficResult> {
  const { signal } = options;
  // HTTP/1.1 as most OpenAI clients speak it; connections are opened as needed and kept.
  const agent = new Agent({ pipelining: 1, connections: null });
  const startMs = performance.now();
  const requests: { messages: readonly Message[]; outcome: ChatOutcome | null }[] = [];
  let nAnswered = 0;

  const converse = async ({ systemPrompt, turns }: Conversation): Promise<void> => {
    const messages: Message[] = [{ role: 'system', content: systemPrompt }];
    for (const turn of turns) {
      await until(startMs + turn.atMs, signal);
      messages.push({ role: 'user', content: turn.text });
      const request = { messages: [...messages], outcome: null as ChatOutcome | null };
      requests.push(request);
      const body = { model: workload.model, messages: request.messages, maxTokens: turn.answerTokens };
      request.outcome = await sendChat(gateway, agent, body, signal);
      signal.throwIfAborted();
      if (request.outcome.kind === 'answered') messages.push({ role: 'assistant', content: request.outcome.answer });
      options.onAnswered?.(++nAnswered);
    }
  };

  try {
    await Promise.all(workload.conversations.map(converse));
    return {
      requests: requests.map(({ messages, outcome }) => ({ messages, outcome: outcome! })),
      durationMs: performance.now() - startMs,
    };
  } finally {
    await agent.destroy();
  }
}

/** What the ideal is computed from: requests that failed left nothing behind to be hit. */
export function sentChats({ requests }: TrafficResult): SentChat[] {
  return requests.flatMap(({ messages, outcome }) =>
    outcome.kind === 'answered' ? [{ messages, answer: outcome.answer }] : [],
  );
}

function until(dueMs: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const onAbort = (): void => {
      clearTimeout(timer);
      reject(signal.reason as Error);
    };
    const timer = setTimeout(
      () => {
        signal.removeEventListener('abort', onAbort);
        resolve();
      },
      Math.max(0, dueMs - performance.now()),
    );
    signal.addEventListener('abort', onAbort, { once: true });
  });
}
