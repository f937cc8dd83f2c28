/**
 * One question to the picker: asked once, answered once, with a deadline. Whatever comes too late or is not usable gives
 * back what it booked. What an answer means for Envoy is exchange.ts.
 */
import type { Clock, Timer } from '../clock.ts';
import { LightSignal, type Signal } from '../light-signal.ts';
import type { Decision, PickError, PickRequest } from './picker.ts';
import { destinationValue } from './protocol.ts';
import type { FaultReason } from './refusals.ts';

/** A decision with endpoints. */
export type Routed = Decision & { readonly kind: 'routed' };

export type PickerQuestionOutput = {
  pick(request: PickRequest, signal: Signal): void;
  /** @param destination header and metadata value; `first` is its first endpoint */
  routed(destination: string, first: string, decision: Routed): void;
  refused(error: PickError): void;
  failed(reason: FaultReason): void;
};

export type PickerQuestion = {
  ask(request: PickRequest): void;
  decided(decision: Decision): void;
  /** Settles an open question as failed; nothing otherwise. */
  fail(reason: FaultReason): void;
  /** The request is gone: nobody waits for the answer any more. May throw what a listener of the signal throws. */
  cancel(): void;
  state(): PickerQuestionState;
  /** Question → answer in milliseconds, null while there is none. */
  decisionMs(): number | null;
};

export type PickerQuestionState = 'not_asked' | 'asked' | 'settled' | 'cancelled';

/** A timer later than this was held up with everything else in the process. */
const STALL_MS = 20;

export function createPickerQuestion(deadlineMs: number, clock: Clock, output: PickerQuestionOutput): PickerQuestion {
  let state: PickerQuestionState = 'not_asked';
  let abort: LightSignal | null = null;
  let timer: Timer | null = null;
  let askedAtMs = 0;
  let decisionMs: number | null = null;

  function ask(request: PickRequest): void {
    state = 'asked';
    askedAtMs = clock.nowMs();
    abort = new LightSignal();
    timer = clock.after(deadlineMs, overrun);
    output.pick(request, abort);
  }

  function decided(decision: Decision): void {
    if (state !== 'asked') {
      if (decision.kind === 'routed') decision.reservation.release(state === 'cancelled' ? 'cancelled' : 'failed');
      return;
    }
    if (decision.kind === 'error') {
      settle('settled');
      return output.refused(decision);
    }
    const destination = destinationValue(decision.endpoints);
    if (destination === null) {
      fail('picker_failed');
      return decision.reservation.release('failed');
    }
    settle('settled');
    output.routed(destination, decision.endpoints[0]!, decision);
  }

  /** After a stall of the event loop the decision may lie ready behind this timer: it gets one more turn. */
  function overrun(): void {
    const lateMs = clock.nowMs() - askedAtMs - deadlineMs;
    if (lateMs < STALL_MS) fail('picker_timeout');
    else timer = clock.after(0, () => fail('picker_timeout'));
  }

  function fail(reason: FaultReason): void {
    if (state !== 'asked') return;
    const asked = settle('settled');
    output.failed(reason);
    asked?.abort();
  }

  function cancel(): void {
    if (state === 'asked') settle('cancelled')?.abort();
    else state = 'cancelled';
  }

  function settle(to: 'settled' | 'cancelled'): LightSignal | null {
    const asked = abort;
    state = to;
    abort = null;
    timer?.cancel();
    timer = null;
    if (to === 'settled') decisionMs = clock.nowMs() - askedAtMs;
    return asked;
  }

  return {
    ask,
    decided,
    fail,
    cancel,
    state: () => state,
    decisionMs: () => decisionMs,
  };
}
