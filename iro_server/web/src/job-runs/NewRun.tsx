// A form for a run: the batch job, a preset, and a field for each field of the config's JSON schema.

import { useState } from "preact/hooks";
import { ApiError } from "../api";
import { usePolled } from "../hooks";
import { sameJson } from "../new/json";
import { Field, Problem } from "../parts";
import { fromHere } from "../router";
import type { Config, JobKind } from "./api";
import { createRun, getRun, listKinds } from "./api";
import { ConfigField } from "./ConfigField";
import type { FormField } from "./schema";
import { FieldError, baseConfig, fieldsOf, textOf, valueOf } from "./schema";

export function NewRun({ query }: { query: URLSearchParams }) {
  const from = query.get("from");
  const { value, error, again } = usePolled(
    async (signal) => {
      const [kinds, run] = await Promise.all([listKinds(signal), from ? getRun(from, signal) : null]);
      return { kinds: kinds.data, run };
    },
    null,
    `new run ${from}`,
  );
  const [chosen, setChosen] = useState<string | null>(null);
  if (!value) return error ? <Problem error={error} again={again} /> : <p class="faint">Reading the batch jobs …</p>;
  const id = chosen ?? value.run?.kind ?? value.kinds.find(({ problem }) => !problem)?.id;
  const kind = value.kinds.find((candidate) => candidate.id === id) ?? value.kinds[0]!;
  return (
    <section>
      <p class="crumb">
        <a href="#/runs">Batch jobs</a>
      </p>
      <div class="title">
        <h1>New run</h1>
      </div>
      <div class="card">
        <Field id="kind" label="Batch job" hint={kind.summary}>
          <select
            id="kind"
            value={kind.id}
            aria-describedby="kind-hint"
            onChange={(event) => setChosen(event.currentTarget.value)}
          >
            {value.kinds.map((option) => (
              <option key={option.id}>{option.id}</option>
            ))}
          </select>
        </Field>
        {kind.problem && <p class="warn">{kind.problem}</p>}
      </div>
      {!kind.problem && (
        <ConfigForm key={kind.id} kind={kind} before={kind.id === value.run?.kind ? value.run.config : null} />
      )}
    </section>
  );
}

/** `before`: the config of a run that this one starts from. */
function ConfigForm({ kind, before }: { kind: JobKind; before: Config | null }) {
  const presets = Object.keys(kind.presets);
  const [preset, setPreset] = useState(before ? "" : (presets[0] ?? ""));
  const [texts, setTexts] = useState<Record<string, string>>({}); // of the fields that were changed
  const [name, setName] = useState("");
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  const fields = fieldsOf(kind.config_schema);
  const base = baseConfig(kind.config_schema, kind.presets[preset]);
  const start = { ...base, ...(preset ? {} : before) };
  const wrong = error instanceof FieldError ? error.field : error instanceof ApiError ? error.param?.split(".")[1] : null;
  const chosen = preset ? kind.presets[preset]! : differences(before, base);
  const first = fields.filter(({ name, required }) => required || name in chosen);
  const further = fields.filter((field) => !first.includes(field));
  const shown = (field: FormField) => (
    <ConfigField
      key={field.name}
      field={field}
      text={texts[field.name] ?? textOf(field, start[field.name])}
      changed={field.name in texts}
      wrong={field.name === wrong}
      onText={(text) => setTexts({ ...texts, [field.name]: text })}
    />
  );
  const submit = async (event: Event) => {
    event.preventDefault();
    const goTo = fromHere();
    setBusy(true);
    try {
      const config: Config = {};
      for (const field of fields) {
        const text = texts[field.name] ?? textOf(field, start[field.name]);
        if (field.required || text !== textOf(field, base[field.name])) config[field.name] = valueOf(field, text);
      }
      const run = await createRun({ kind: kind.id, preset: preset || null, config, name: name.trim() || null });
      goTo(["runs", run.id]);
    } catch (problem) {
      setError(problem as Error);
      setBusy(false);
    }
  };
  return (
    <form class="card" onSubmit={(event) => void submit(event)} noValidate>
      <div class="pair">
        <Field id="preset" label="Preset">
          <select
            id="preset"
            value={preset}
            onChange={(event) => {
              setPreset(event.currentTarget.value);
              setTexts({});
            }}
          >
            {presets.map((option) => (
              <option key={option}>{option}</option>
            ))}
            <option value="">{before ? "the config of the earlier run" : "none: the defaults"}</option>
          </select>
        </Field>
        <Field id="name" label="Name" hint="Optional; it stands in lists and legends.">
          <input
            id="name"
            maxLength={100}
            value={name}
            aria-describedby="name-hint"
            onInput={(event) => setName(event.currentTarget.value)}
          />
        </Field>
      </div>
      <Documentation text={kind.config_schema.description ?? ""} />
      {first.length > 0 && <div class="grid">{first.map(shown)}</div>}
      {further.length > 0 && (
        <details open={first.length === 0 || further.some(({ name }) => name === wrong)}>
          <summary>{first.length > 0 ? "Further fields" : "Fields"}</summary>
          <div class="grid">{further.map(shown)}</div>
        </details>
      )}
      {error && <Problem error={error} />}
      <div class="start">
        <button class="main" disabled={busy}>
          Start the run
        </button>
        <span class="faint small">It runs on the server’s machine, beside its requests.</span>
      </div>
    </form>
  );
}

/** The fields of an earlier run's config that are not the defaults. */
function differences(before: Config | null, defaults: Config): Config {
  return Object.fromEntries(Object.entries(before ?? {}).filter(([name, value]) => !sameJson(value, defaults[name])));
}

/** A docstring: paragraphs, with names between double backticks. */
function Documentation({ text }: { text: string }) {
  const paragraphs = text.split(/\n\s*\n/).filter(Boolean);
  return (
    <>
      {paragraphs.map((paragraph) => (
        <p class="faint small">
          {paragraph.split("``").map((part, i) => (i % 2 ? <code>{part}</code> : part))}
        </p>
      ))}
    </>
  );
}
