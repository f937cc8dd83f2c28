/**
 * Joins one gRPC stream to one exchange: decoded messages in, answers out, endings both ways. Holds the one rule the
 * exchange cannot: nothing thrown here or in the picker reaches another stream.
 */
import type { Clock } from '../clock.ts';
import { faultText } from '../errors.ts';
import type { BodyBudget } from './body-budget.ts';
import type { Decision, EndpointPicker } from './picker.ts';
import { createExchange, type Exchange, type ExchangeOptions, type ExchangeResult } from './exchange.ts';
import type { Breach, GrpcCall, GrpcCallListener } from './grpc-call.ts';
import { readMessage } from './message-reader.ts';
import type { EnvoyMessage } from './messages.ts';
import type { CreateUsageReader } from './response-side.ts';
import type { UnseenEnds } from './unseen-ends.ts';
import type { UsageJoin } from './usage-join.ts';

export type StreamDeps = {
  readonly picker: EndpointPicker;
  readonly clock: Clock;
  readonly createUsageReader: CreateUsageReader;
  readonly bodyBudget: BodyBudget;
  readonly usageJoin: UsageJoin;
  readonly unseenEnds: UnseenEnds;
  /** A bug, in this room or in the picker; never what a client sent. */
  onFault(what: 'picker failed' | 'stream handler failed', error: string): void;
  /** Called once, when nothing of the stream is left. */
  onEnd(result: ExchangeResult): void;
};

export type OpenStream = {
  readonly listener: GrpcCallListener;
  /** See Exchange.drain and Exchange.expire. */
  drain(): void;
  expire(): void;
};

export function serveStream(call: GrpcCall, deps: StreamDeps, options: ExchangeOptions): OpenStream {
  let writable = true;
  /**
   * Null once the stream is over. What is left of an HTTP/2 stream lives in Node until the next full collection; it must not
   * keep the request with it, or every short collection copies thousands of dead ones (a third of the CPU at saturation).
   */
  let exchange: Exchange | null = createExchange(options, deps.clock, deps.createUsageReader, {
    send(response) {
      // Envoy does not take what it asked for: read no more of it until it does.
      if (writable && !call.write(response)) call.pause();
    },
    pick: (request, signal) => {
      let decision;
      try {
        decision = deps.picker.pick(request, signal);
      } catch (error) {
        return pickFailed(error);
      }
      const requestId = request.header('x-request-id');
      const decided = guarded((made: Decision) => {
        if (made.kind === 'routed') {
          made = { ...made, reservation: deps.usageJoin.join(requestId, made.reservation) };
        }
        if (exchange !== null) exchange.decided(made);
        else if (made.kind === 'routed') made.reservation.release('cancelled');
      });
      decision.then(decided, pickFailed);
    },
    // Another stream's body may be what makes this one go: a fault here stays here.
    holdBody: (drop) => deps.bodyBudget.open(guarded(drop)),
    observe: deps.usageJoin.observe,
    unseen: deps.unseenEnds.hold,
    end() {
      writable = false;
      call.end();
    },
    fail(code, details) {
      writable = false;
      call.fail(code, details);
    },
    finished(result) {
      writable = false;
      exchange = null;
      deps.onEnd(result);
    },
  });

  const pickFailed = (error: unknown): void => {
    if (!writable) return;
    deps.onFault('picker failed', faultText(error));
    guarded(() => exchange?.pickFailed())();
  };

  function guarded<A extends unknown[]>(step: (...args: A) => void): (...args: A) => void {
    return (...args) => {
      try {
        step(...args);
      } catch (error) {
        deps.onFault('stream handler failed', faultText(error));
        try {
          exchange?.fault();
        } catch (again) {
          deps.onFault('stream handler failed', faultText(again));
          writable = false;
          call.fail('INTERNAL', 'a message could not be handled');
        }
      }
    };
  }

  const broken = guarded(({ status, details, reason }: Breach) => exchange?.broken(status, details, reason));
  const message = guarded((incoming: EnvoyMessage) => exchange?.message(incoming));

  return {
    listener: {
      message(bytes) {
        let incoming;
        try {
          incoming = readMessage(bytes);
        } catch (error) {
          return broken({ status: 'INTERNAL', details: faultText(error), reason: 'message_unreadable' });
        }
        message(incoming);
      },
      halfClosed: guarded(() => exchange?.halfClosed()),
      drained: () => call.resume(),
      broken,
      closed: guarded(() => exchange?.cancelled()),
    },
    drain: guarded(() => exchange?.drain()),
    expire: guarded(() => exchange?.expire()),
  };
}
