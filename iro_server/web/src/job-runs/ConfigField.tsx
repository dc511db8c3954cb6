// A field of a config, as its schema asks for.

import { Field } from "../parts";
import type { FormField } from "./schema";
import { hintOf } from "./schema";

interface Props {
  field: FormField;
  text: string;
  changed: boolean;
  wrong: boolean;
  onText: (text: string) => void;
}

export function ConfigField({ field, text, changed, wrong, onText }: Props) {
  const { name, control, schema, nullable } = field;
  const id = `config-${name}`;
  const hint = hintOf(field);
  const common = {
    id,
    "aria-describedby": hint ? `${id}-hint` : undefined,
    "aria-invalid": wrong || undefined,
    class: control === "json" ? "code" : undefined,
  };
  if (control === "boolean" || control === "choice") {
    const options = control === "choice" ? (schema.enum ?? []).map(String) : ["true", "false"];
    return (
      <Field id={id} label={label(name, changed)} hint={hint}>
        <select {...common} value={text} onChange={(event) => onText(event.currentTarget.value)}>
          {nullable && <option value="">none</option>}
          {options.map((option) => (
            <option key={option} value={option}>
              {control === "boolean" ? (option === "true" ? "yes" : "no") : option}
            </option>
          ))}
        </select>
      </Field>
    );
  }
  return (
    <Field id={id} label={label(name, changed)} hint={hint}>
      <input
        {...common}
        value={text}
        inputMode={control === "number" ? "decimal" : undefined}
        spellcheck={false}
        autocomplete="off"
        onInput={(event) => onText(event.currentTarget.value)}
      />
    </Field>
  );
}

const label = (name: string, changed: boolean): string => name + (changed ? " (changed)" : "");
