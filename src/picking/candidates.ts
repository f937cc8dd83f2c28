/** Which endpoints may serve a request: ready, of its model, among those the data plane allows. */
import type { EndpointStore } from '../endpoints/endpoint-store.ts';
import type { Endpoint } from '../endpoints/endpoint.ts';
import type { PickError, PickRequest } from '../extproc/picker.ts';
import type { InferenceRequest } from '../openai/request.ts';
import { noEndpoint, unknownModel } from './pick-errors.ts';

export type Selected = {
  readonly kind: 'selected';
  /** Never empty; without a restriction the same array until the fleet changes. */
  readonly endpoints: readonly Endpoint[];
  readonly model: string;
  readonly adapter: string | null;
};

/**
 * @param testSelectionHeader of conformance runs: request header that restricts the choice to hosts or addresses, separated
 *   by commas, as a client says; '' = none, as it must be wherever clients are not the test
 */
export function selectCandidates(
  endpoints: EndpointStore,
  request: InferenceRequest,
  { subset, header }: PickRequest,
  testSelectionHeader: string,
): Selected | PickError {
  const known = request.model === '' ? null : endpoints.candidates(request.model);
  const anyModel = request.model === '' || (known === null && request.api === 'other');
  if (!anyModel && known === null && endpoints.all().length > 0) return unknownModel(request.model);
  const ready = anyModel ? endpoints.ready() : (known?.ready ?? []);
  const model = known?.model ?? null;
  if (ready.length === 0) return noEndpoint('no_ready_endpoint', 'No endpoint is ready to serve this request.', model);
  const allowed = subset.kind === 'all' ? ready : ready.filter(({ address }) => subset.addresses.includes(address));
  if (allowed.length === 0) {
    return noEndpoint('subset_without_endpoint', 'None of the endpoints the data plane allows is ready.', model);
  }
  const named = testSelectionHeader === '' ? undefined : header(testSelectionHeader);
  const chosen = named === undefined ? allowed : allowed.filter(isNamedIn(named));
  if (chosen.length === 0) {
    return noEndpoint('test_selection_without_endpoint', 'None of the endpoints the test names is ready.', model);
  }
  return {
    kind: 'selected',
    endpoints: chosen,
    model: known?.model ?? '',
    adapter: known?.adapter ?? null,
  };
}

function isNamedIn(list: string): (endpoint: Endpoint) => boolean {
  const names = new Set(list.split(',').map((name) => name.trim()));
  return ({ address }) => {
    const host = address.slice(0, address.lastIndexOf(':'));
    return names.has(address) || names.has(host) || names.has(host.replace(/^\[|\]$/g, ''));
  };
}
