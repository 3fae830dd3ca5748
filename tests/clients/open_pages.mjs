// SPDX-License-Identifier: Apache-2.0
// Opens pages of bundles in headless Chromium without a network, and prints what they show, as JSON.
// node open_pages.mjs NODE_MODULES '[{"url": ..., "screenshot": FILE, "picture": FILE or null}, ...]'
import {createRequire} from 'node:module';
import path from 'node:path';

const [modules, pages] = [process.argv[2], JSON.parse(process.argv[3])];
const {chromium} = createRequire(path.join(modules, 'x.js'))('playwright-core');

const browser = await chromium.launch({
  timeout: 120_000,
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  // Only loopback is reachable: the proxy of everything else does not exist.
  args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--proxy-server=http://127.0.0.1:9',
    '--proxy-bypass-list=127.0.0.1'],
});
const results = [];
for (const {url, screenshot, picture} of pages) {
  const page = await browser.newPage({viewport: {width: 1000, height: 900}});
  page.setDefaultTimeout(120_000);
  const [requests, failed] = [[], []];
  page.on('request', (request) => requests.push(request.url()));
  page.on('requestfailed', (request) => failed.push(request.url()));
  page.on('response', (response) => response.ok() || failed.push(`${response.status()} ${response.url()}`));
  await page.goto(url);
  await page.waitForFunction('window.selfTest');
  const outcome = await page.evaluate('window.selfTest');
  if (picture) {
    await page.setInputFiles('#file', picture);
    await page.waitForSelector('#result li');
  }
  const text = await page.evaluate('document.body.innerText');
  const verdict = await page.textContent('#verdict');
  const loaded = await page.evaluate('[...document.images].every((image) => image.complete && image.naturalWidth > 0)');
  const isolated = await page.evaluate('crossOriginIsolated');
  // Whether the module refuses values of another number or kind, for each input.
  const refusals = await page.evaluate(async () => {
    const {encode, INPUTS} = await import('./model.js');
    const refuses = (input, values) => {
      try {
        encode(input, values);
        return false;
      } catch (error) {
        return error instanceof RangeError;
      }
    };
    return INPUTS.map((input) => {
      const count = input.shape.reduce((product, length) => product * length, 1);
      return {
        few: refuses(input, new Float32Array(count - 1)),
        nan: refuses(input, new Float32Array(count).fill(NaN)),
        fractions: refuses(input, new Float32Array(count).fill(0.5)),
        needsIntegers: input.dtype !== 'float32' && !input.quantization,
      };
    });
  });
  const result = picture ? await page.textContent('#result') : '';
  await page.screenshot({path: screenshot, fullPage: true});
  results.push({outcome, refusals, text, verdict, loaded, isolated, result, requests, failed});
  await page.close();
}
await browser.close();
console.log(JSON.stringify(results));
