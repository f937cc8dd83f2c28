/**
 * Which data-parallel rank computes a request: the one that `x-data-parallel-rank` names, else the one with the least to do,
 * weighed as vLLM's own balancer does (`DPLBAsyncMPClient`).
 */
import type { Engine } from './engine.ts';
import type { ApiError } from './body-fields.ts';
import type { GenerationApi } from './openai-requests.ts';

/** APIs whose handlers pass the header on; the others leave it unread. */
const READ_BY: readonly GenerationApi[] = ['chat', 'completions', 'messages', 'generate'];

/** @param header as it came; what Python's `int` does not take counts as none */
export function chooseRank(
  engines: readonly Engine[],
  api: GenerationApi,
  header: string | string[] | undefined,
): Engine | ApiError {
  const text = typeof header === 'string' && READ_BY.includes(api) ? header.trim() : '';
  if (!/^[+-]?\d+(?:_\d+)*$/.test(text)) return leastBusy(engines);
  const rank = Number(text.replaceAll('_', ''));
  return (
    engines[rank] ?? {
      kind: 'error',
      status: 400,
      type: 'BadRequestError',
      message: `data_parallel_rank ${rank} is out of range [0, ${engines.length}).`,
      param: null,
    }
  );
}

function leastBusy(engines: readonly Engine[]): Engine {
  const scores = engines.map((engine) => {
    const { running, waiting } = engine.stats();
    return 4 * waiting + running;
  });
  return engines[scores.indexOf(Math.min(...scores))]!;
}
