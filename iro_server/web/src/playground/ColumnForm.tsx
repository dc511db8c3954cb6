// Who answers in a column, and how.

import { nameWithout } from "../format";
import { Field } from "../parts";
import type { Column, Mode } from "./search";
import { BEST_OF, MODES, SETTINGS, WEIGHTS, rowsAreSet, weightOf } from "./search";

interface Props {
  column: Column;
  models: string[];
  aligned: string[];
  base: string;
  onChange: (column: Column) => void;
}

export function ColumnForm({ column, models, aligned, base, onChange }: Props) {
  const id = (name: string) => `${name}-${column.id}`;
  const change = (fields: Partial<Column>) => onChange({ ...column, ...fields });
  const canMix = (model: string) => aligned.length > 1 && aligned.includes(model);
  const pickModel = (model: string) => {
    const served = model === base || (column.mode === "mix" && !canMix(model));
    change(served ? { model, mode: "served" } : { model, weights: {} });
  };
  return (
    <div>
      <Field id={id("model")} label="Model">
        <select
          id={id("model")}
          title={column.model}
          value={column.model}
          onChange={(event) => pickModel(event.currentTarget.value)}
        >
          {models.map((name) => (
            <option value={name}>{name === base ? `${name} (frozen)` : nameWithout(base, name)}</option>
          ))}
        </select>
      </Field>
      {column.model !== base && (
        <Field id={id("mode")} label="Answers">
          <select
            id={id("mode")}
            value={column.mode}
            onChange={(event) => change({ mode: event.currentTarget.value as Mode })}
          >
            {Object.entries(MODES)
              .filter(([mode]) => mode !== "mix" || canMix(column.model))
              .map(([mode, name]) => (
                <option value={mode}>{name}</option>
              ))}
          </select>
        </Field>
      )}
      {column.mode === "best_of_n" && (
        <Slider
          id={id("n")}
          label="n"
          values={BEST_OF}
          value={column.n}
          onChange={(n) => change({ n: n ?? BEST_OF[0]! })}
        />
      )}
      {column.mode === "mix" &&
        aligned.map((name, i) => (
          <Slider
            id={id(`weight-${i}`)}
            label={name}
            long
            values={WEIGHTS}
            value={weightOf(column, name)}
            onChange={(weight) => change({ weights: { ...column.weights, [name]: weight ?? 0 } })}
          />
        ))}
      {column.mode === "search" &&
        SETTINGS.map(({ name, label, values }) => (
          <Slider
            id={id(name)}
            label={label}
            values={values}
            value={column.settings[name]}
            disabled={name === "rows" && rowsAreSet(column.settings)}
            open
            onChange={(value) => {
              const { [name]: _, ...others } = column.settings;
              change({ settings: value === undefined ? others : { ...others, [name]: value } });
            }}
          />
        ))}
    </div>
  );
}

interface SliderProps {
  id: string;
  label: string;
  values: number[];
  value: number | undefined;
  long?: boolean; // whether the label has a line of its own
  open?: boolean; // whether the first place is the model's own value
  disabled?: boolean;
  onChange: (value: number | undefined) => void;
}

function Slider({ id, label, values, value, long, open, disabled, onChange }: SliderProps) {
  const places = open ? [undefined, ...values] : values;
  const shown = value === undefined ? "as served" : String(value);
  return (
    <div class={long ? "slider long" : "slider"}>
      <label for={id} class="break" title={label}>
        {label}
      </label>
      <input
        id={id}
        type="range"
        min={0}
        max={places.length - 1}
        value={Math.max(0, places.indexOf(value))}
        disabled={disabled}
        aria-valuetext={shown}
        onInput={(event) => onChange(places[Number(event.currentTarget.value)])}
      />
      <output for={id}>{disabled ? "W·K" : shown}</output>
    </div>
  );
}
