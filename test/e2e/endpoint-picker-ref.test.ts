/**
 * Warmpath as the `endpointPickerRef` of an InferencePool, as an AI gateway attaches it: TLS that nobody verifies and without
 * ALPN, both bodies streamed through in full duplex, no passing when the picker fails, and a cluster that goes wherever
 * the destination header says.
 */
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import type { EnvoyBootstrap } from '../../src/demo/envoy-config.ts';
import { aChat, chat, eventually, longText, setStage, type Stage } from './stage.ts';

type Gateway = {
  static_resources: {
    listeners: [
      {
        filter_chains: [
          { filters: [{ typed_config: { http_filters: { typed_config: { processing_mode: object } }[] } }] },
        ];
      },
    ];
    clusters: ({ name: string } & Record<string, unknown>)[];
  };
};

function asGateway(bootstrap: EnvoyBootstrap): void {
  const { listeners, clusters } = (bootstrap as Gateway).static_resources;
  const filter = listeners[0].filter_chains[0].filters[0].typed_config.http_filters[0]!.typed_config;
  Object.assign(filter, { failure_mode_allow: false });
  Object.assign(filter.processing_mode, {
    response_header_mode: 'SEND',
    response_body_mode: 'FULL_DUPLEX_STREAMED',
    response_trailer_mode: 'SEND',
  });
  const warmpath = clusters.find(({ name }) => name === 'warmpath')!;
  warmpath['transport_socket'] = {
    name: 'envoy.transport_sockets.tls',
    typed_config: {
      '@type': 'type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext',
    },
  };
  const i = clusters.findIndex(({ name }) => name === 'pods');
  clusters[i] = {
    name: 'pods',
    type: 'ORIGINAL_DST',
    lb_policy: 'CLUSTER_PROVIDED',
    connect_timeout: '5s',
    original_dst_lb_config: { use_http_header: true, http_header_name: 'x-gateway-destination-endpoint' },
  };
}

describe('behind an InferencePool', () => {
  let stage: Stage;
  beforeAll(async () => {
    stage = await setStage({
      envoy: { template: 'full-duplex' },
      changeBootstrap: asGateway,
      // A cluster of this kind takes one destination: a list is 503.
      config: { server: { tls: { selfSigned: true } }, routing: { fallbackEndpoints: 0 } },
    });
  });
  afterAll(() => stage.end());

  test('a conversation stays where its cache is, and its answers come through whole', async () => {
    const first = await chat(stage.envoy.listenerAddress, aChat(longText('pool', 200)));
    expect(first.status).toBe(200);
    expect(first.json.usage!.prompt_tokens).toBeGreaterThan(200);
    const again = await chat(stage.envoy.listenerAddress, aChat(longText('pool', 200)));
    expect(again.cachedTokens).toBeGreaterThan(180);
  });

  test('a streamed answer arrives event by event, to its end', async () => {
    const response = await fetch(`http://${stage.envoy.listenerAddress}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(aChat('count', { stream: true, max_tokens: 12 })),
    });
    const events = (await response.text()).split('\n\n').filter((line) => line.startsWith('data: '));
    expect(events.length).toBeGreaterThan(12);
    expect(events.at(-1)).toBe('data: [DONE]');
  });

  test('what is no request is refused by Warmpath, not by the gateway', async () => {
    const answer = await chat(stage.envoy.listenerAddress, '{"model": ');
    expect(answer.status).toBe(400);
    expect(answer.headers.get('x-warmpath-reason')).toBe('bad_request');
    expect(answer.json.error?.type).toBe('invalid_request_error');
  });

  test('no load is left over', async () => {
    const { pods, warmpath } = stage;
    expect(pods.reduce((sum, { pod }) => sum + pod.stats().finishedRequests, 0)).toBe(3);
    await eventually(async () => {
      const text = await (await fetch(`http://${warmpath.admin}/metrics`)).text();
      const left = /^warmpath_(?:extproc_streams|endpoint_in_flight_\w+)(?:\{.*\})? [^0].*$/m.exec(text);
      return left === null ? 'done' : `left over: ${left[0]}`;
    });
  });
});
