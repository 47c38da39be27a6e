// Pictures of MLflow's pages for docs/: the runs of an experiment, and its last run.
//
//   npm install --prefix build/pictures playwright-core
//   NODE_PATH=build/pictures/node_modules node scripts/mlflow_pictures.mjs EXPERIMENT [http://127.0.0.1:5000] [docs]
//
// It needs a server that shows runs (docs/mlflow.md), and Chromium, at /usr/bin/chromium or where CHROMIUM says.
import { createRequire } from "node:module";

const { chromium } = createRequire(import.meta.url)("playwright-core");
const [name, server = "http://127.0.0.1:5000", folder = "docs"] = process.argv.slice(2);

async function ask(path, body) {
  const answer = await fetch(`${server}/api/2.0/mlflow/${path}`, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
  if (!answer.ok) throw new Error(`${path}: ${await answer.text()}`);
  return answer.json();
}

const { experiments = [] } = await ask("experiments/search", { max_results: 1000, filter: `name = '${name}'` });
if (experiments.length !== 1) throw new Error(`${server} has no experiment ${name}`);
const experiment = experiments[0].experiment_id;
const { runs } = await ask("runs/search", { experiment_ids: [experiment], max_results: 1 });

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 1600, height: 1000 } });
page.setDefaultTimeout(90_000);

await page.goto(server);
await page.getByText("Model training", { exact: true }).first().click();

async function picture(path, ready, file, prepare = async () => {}) {
  await page.goto(`${server}/#/experiments/${experiment}/${path}`);
  await page.getByText(ready).first().waitFor();
  const assistant = page.locator('[data-component-id="mlflow.assistant.chat_panel.close"]');
  if (await assistant.isVisible()) await assistant.click();
  await prepare();
  await page.waitForTimeout(20_000); // charts are drawn late
  await page.screenshot({ path: `${folder}/${file}` });
}

await picture("runs?compareRunsMode=CHART", runs[0].info.run_name, "mlflow_ui.png", () =>
  page.getByPlaceholder("Search metric charts").fill("val_"),
);
await picture(`runs/${runs[0].info.run_id}`, "Metrics (", "mlflow_run.png");
await browser.close();
