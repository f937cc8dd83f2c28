/** One endpoint of tests; say only what the test is about. */
import type { EndpointSpec } from '../../../src/endpoints/endpoint.ts';

export function aSpec(given: Partial<EndpointSpec> & { readonly address: string }): EndpointSpec {
  return {
    name: `pod at ${given.address}`,
    models: ['demo'],
    adapters: [],
    kvEvents: [],
    labels: {},
    ready: true,
    incarnation: '',
    ...given,
  };
}
