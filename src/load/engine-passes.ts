/**
 * Engines compute in passes: a pass takes prompts in the order they were sent, up to a budget of tokens, and all that are
 * complete at its end get their first token then. How large the budget is no engine says; first tokens that come together
 * show it from below. No clock, no I/O.
 */

/** Prompts that got their first token at the same moment. */
export type Pass = {
  readonly doneMs: number;
  readonly serviceMs: number;
  tokens: number;
  nOpen: number;
  /** The one sent first: a part of it may have been computed in passes before. */
  first: PassMember | null;
};

export type PassMember = {
  /** Counts what is sent. */
  readonly nth: number;
  readonly tokens: number;
};

export type WaitingPrompt = {
  readonly uncachedTokens: number;
  readonly sentMs: number;
  readonly computed: boolean;
};

/** The pass in which a prompt sent now would begin. */
export type JoinedPass = {
  /** Prompts that would get their first token at its end, too. */
  readonly passPrompts: number;
  /** Tokens it takes beside them. */
  readonly passRoomTokens: number;
};

/** First tokens of one pass are seen within that time. */
const TOGETHER_MS = 2;
/** Smaller ones hold one prompt's part, and are over before it matters who else is in them. */
const LEAST_BUDGET_TOKENS = 1024;
/** Weight of the most a pass has taken, after every further pass: half of it after 6,931. Engines seldom change. */
const BUDGET_MEMORY = 0.9999;
/** Only the last of a longer queue are looked at: where a pass that far away begins is anybody's guess. */
const MOST_WAITING = 256;
export const NO_PASS: JoinedPass = { passPrompts: 0, passRoomTokens: 0 };

/** The pass that ended now: the last one, when that was a moment ago. */
export function passAt(last: Pass | null, nowMs: number, serviceMs: number): Pass {
  if (last !== null && nowMs - last.doneMs <= TOGETHER_MS) return last;
  return { doneMs: nowMs, serviceMs, tokens: 0, nOpen: 0, first: null };
}

export function addToPass(pass: Pass, member: PassMember): void {
  pass.tokens += member.tokens;
  if (pass.first === null || member.nth < pass.first.nth) pass.first = member;
}

/** @returns the budget known so far, after a pass has shown that it is at least as large as what came with its first prompt */
export function learntBudget(budgetTokens: number, pass: Pass): number {
  return Math.max(budgetTokens * BUDGET_MEMORY, pass.tokens - (pass.first?.tokens ?? 0));
}

/**
 * @param queue in the order they were sent; computed ones are passed over
 * @param head the first that is still waited for
 * @param beganMs when the engine was free for that one
 * @param passMsOf what a pass of so many tokens takes
 */
export function joinedPass(
  queue: readonly WaitingPrompt[],
  head: number,
  budgetTokens: number,
  beganMs: number,
  nowMs: number,
  passMsOf: (tokens: number) => number,
): JoinedPass {
  if (budgetTokens < LEAST_BUDGET_TOKENS) return NO_PASS;
  let beginsMs = beganMs;
  let tokens = 0;
  let prompts = 0;
  // Of a pass that is over, first tokens would have been seen: the next one is still to come.
  const begin = (): void => {
    beginsMs = Math.max(nowMs, beginsMs + passMsOf(tokens));
    tokens = 0;
    prompts = 0;
  };
  for (let i = Math.max(head, queue.length - MOST_WAITING); i < queue.length; i++) {
    const { uncachedTokens, sentMs, computed } = queue[i]!;
    if (computed) continue;
    if (sentMs > beginsMs) begin();
    tokens += uncachedTokens;
    if (tokens > budgetTokens) {
      const nFull = Math.ceil(tokens / budgetTokens) - 1;
      beginsMs += passMsOf(nFull * budgetTokens);
      tokens -= nFull * budgetTokens;
      prompts = 0;
    }
    prompts += 1;
  }
  if (nowMs > beginsMs) begin();
  return { passPrompts: prompts, passRoomTokens: budgetTokens - tokens };
}
