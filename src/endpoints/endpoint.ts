/**
 * What an endpoint is: one per pod × port (× data-parallel rank where ranks have no port of their own).
 * Where endpoints come from is static-endpoints.ts or kubernetes/, who keeps them is endpoint-store.ts.
 */

export type EndpointId = string & { readonly brand: 'EndpointId' };

/** Small integer that names an endpoint inside the index, 0 ≤ slot < `MAX_ENDPOINT_SLOTS`; reused after removal. */
export type EndpointSlot = number & { readonly brand: 'EndpointSlot' };

export const MAX_ENDPOINT_SLOTS = 1024;

/** Where an endpoint publishes its KV events. */
export type KvEventSource = {
  /**
   * ZMQ address of the publisher, `tcp://ip:port`; or the topic under which it sends when it connects to us, `kv@ip:port`
   * with the endpoint's address, and `#rank` behind it for ranks above 0.
   */
  readonly endpoint: string;
  /** ZMQ address of the replay socket, null = this publisher cannot replay. */
  readonly replayEndpoint: string | null;
};

/** What discovery says about an endpoint. */
export type EndpointSpec = {
  readonly name: string;
  /** `ip:port` or `[ipv6]:port`, in canonical spelling: what Envoy compares. */
  readonly address: string;
  /** Served names; the first is the canonical one, the others are aliases. Never empty. */
  readonly models: readonly string[];
  /** LoRA adapter names. */
  readonly adapters: readonly string[];
  /** Data-parallel ranks behind the address that this stands for, at least 1. */
  readonly dataParallelSize: number;
  /** The one of the ranks behind its address, counted from 0; null = the address as a whole. */
  readonly rank: number | null;
  /** One entry per data-parallel rank it stands for; empty = publishes no events. */
  readonly kvEvents: readonly KvEventSource[];
  readonly labels: Readonly<Record<string, string>>;
  readonly ready: boolean;
  /** Changes when the process behind the address is another one (pod UID, container restarts); '' where unknown. */
  readonly incarnation: string;
};

export type Endpoint = EndpointSpec & { readonly id: EndpointId; readonly slot: EndpointSlot };

/** What no other endpoint is called: the address, and `/rank` behind it where it is one rank of several. */
export function endpointKey({ address, rank }: Pick<EndpointSpec, 'address' | 'rank'>): string {
  return rank === null ? address : `${address}/${rank}`;
}

/** Every rank as an endpoint of its own: it has its own cache and its own publisher, and a header leads to it. */
export function ranksApart(specs: readonly EndpointSpec[]): readonly EndpointSpec[] {
  return specs.flatMap((spec) => (spec.dataParallelSize === 1 ? [spec] : ranksOf(spec)));
}

function ranksOf(spec: EndpointSpec): readonly EndpointSpec[] {
  return Array.from({ length: spec.dataParallelSize }, (_, rank) => ({
    ...spec,
    name: `${spec.name}/${rank}`,
    dataParallelSize: 1,
    rank,
    kvEvents: spec.kvEvents.slice(rank, rank + 1),
  }));
}

/** Endpoints that share an address are ranks behind it; in the order given. */
export function byAddress(endpoints: readonly Endpoint[]): ReadonlyMap<string, readonly Endpoint[]> {
  const addresses = new Map<string, Endpoint[]>();
  for (const endpoint of endpoints) {
    const ranks = addresses.get(endpoint.address);
    if (ranks === undefined) addresses.set(endpoint.address, [endpoint]);
    else ranks.push(endpoint);
  }
  return addresses;
}

/**
 * How far the index may be believed for an endpoint.
 * exact: live event stream, nothing missing. degraded: known to be partial or late. fallback: own decisions only.
 */
export type Trust = 'exact' | 'degraded' | 'fallback';
