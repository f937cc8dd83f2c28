/** What stands between the client and the pods: Envoy, or a stand-in where there is no Envoy. */

/** Where one request is to be sent. `end` is called exactly once, when its answer is over. */
export type Way =
  | {
      readonly kind: 'forward';
      /** `ip:port` */
      readonly address: string;
      readonly headers: Readonly<Record<string, string>>;
      end(): void;
    }
  | { readonly kind: 'refused'; readonly reason: string };

export type Gateway = {
  open(path: string, headers: Readonly<Record<string, string>>, body: Buffer): Promise<Way>;
  close(): Promise<void>;
};

/** Everything goes to one address; what happens behind it is its own business. */
export function createProxyGateway(address: string): Gateway {
  return {
    open: () => Promise.resolve({ kind: 'forward', address, headers: {}, end: () => undefined }),
    close: () => Promise.resolve(),
  };
}

/** Pods in turn: the baseline where there is no Envoy to do it. */
export function createRoundRobinGateway(addresses: readonly string[]): Gateway {
  let nRequests = 0;
  return {
    open: () =>
      Promise.resolve({
        kind: 'forward',
        address: addresses[nRequests++ % addresses.length]!,
        headers: {},
        end: () => undefined,
      }),
    close: () => Promise.resolve(),
  };
}
