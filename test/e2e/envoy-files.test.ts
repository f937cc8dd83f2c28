import { readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from '@jest/globals';
import { envoyConfig, type EnvoyTemplate } from '../../src/demo/envoy-config.ts';
import { envoyBinary, startTestEnvoy, validateEnvoyConfig } from '../support/envoy.ts';

const FOLDER = fileURLToPath(new URL('../../envoy/', import.meta.url));
const FILES = readdirSync(FOLDER).filter((name) => name.endsWith('.yaml'));
const TEMPLATES: readonly EnvoyTemplate[] = ['buffered', 'full-duplex', 'headers-only'];

describe('the bootstraps in envoy/', () => {
  test('there is one per template, and Envoy accepts every one as it is', async () => {
    const binary = await envoyBinary();
    expect(FILES.toSorted()).toEqual(TEMPLATES.map((name) => `warmpath-${name}.yaml`).toSorted());
    for (const name of FILES) await validateEnvoyConfig(binary, `${FOLDER}${name}`);
  });

  test('a file Envoy does not accept is reported in its own words', async () => {
    const rejected = validateEnvoyConfig(await envoyBinary(), `${FOLDER}README.md`);
    await expect(rejected).rejects.toThrow(/README/);
  });

  test.each(TEMPLATES)('%s without Warmpath is plain round robin: nothing of ext_proc is left', (template) => {
    const text = JSON.stringify(envoyConfig({ template, pods: ['127.0.0.1:1'], withExtProc: 'no' }));
    expect(text).not.toMatch(/ExternalProcessor|ExtProcPerRoute|9002/);
    expect(text).not.toContain('override_host');
    expect(text).toContain('"lb_policy":"ROUND_ROBIN"');
  });

  test.each(TEMPLATES)('%s: while Warmpath is down, requests go on to a pod', async (template) => {
    const upstream = await startTestEnvoy({ template: 'buffered', pods: ['127.0.0.1:1'], withExtProc: 'no' });
    const envoy = await startTestEnvoy({
      template,
      pods: [upstream.listenerAddress],
      withExtProc: 'yes',
      extProcAddress: '127.0.0.1:1',
    });
    try {
      // The upstream has no pods either, but its answer shows that the request got there.
      const response = await fetch(`http://${envoy.listenerAddress}/v1/models`, { method: 'POST', body: '{}' });
      expect(response.status).toBe(503);
      const stats = await upstream.stats('http.ingress.downstream_rq_total');
      expect(stats.get('http.ingress.downstream_rq_total')).toBe(1);
    } finally {
      await envoy.stop();
      await upstream.stop();
    }
  });
});
