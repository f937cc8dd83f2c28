/** Endpoints of tests; say only what the test is about. */
import type { Endpoint, EndpointId, EndpointSlot, EndpointSpec } from '../../src/endpoints/endpoint.ts';

export function aSpec(given: Partial<EndpointSpec> & { readonly address: string }): EndpointSpec {
  return {
    name: `pod at ${given.address}`,
    models: ['demo'],
    adapters: [],
    dataParallelSize: 1,
    rank: null,
    kvEvents: [],
    labels: {},
    ready: true,
    incarnation: '',
    ...given,
  };
}

/** The n-th endpoint of a fleet, in slot n. */
export function anEndpoint(n: number): Endpoint {
  const address = `10.0.0.${n}:8000`;
  return {
    ...aSpec({ name: `pod-${n}`, address, models: ['m'] }),
    id: `${address}#1` as EndpointId,
    slot: n as EndpointSlot,
  };
}
