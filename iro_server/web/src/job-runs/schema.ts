// A config's JSON schema as fields of a form, and what is typed there as JSON.

import type { Config, Schema } from "./api";

export type Control = "boolean" | "choice" | "number" | "numbers" | "text" | "file" | "json";

export interface FormField {
  name: string;
  control: Control;
  schema: Schema; // without the alternative "null"
  nullable: boolean;
  required: boolean;
}

export function fieldsOf(config: Schema): FormField[] {
  return Object.entries(config.properties ?? {}).map(([name, property]) => {
    const alternatives = (property.anyOf ?? [property]).filter(({ type }) => type !== "null");
    const schema = alternatives.length === 1 ? { ...property, anyOf: undefined, ...alternatives[0] } : property;
    return {
      name,
      schema,
      control: alternatives.length === 1 ? controlOf(schema) : "json",
      nullable: property.anyOf?.some(({ type }) => type === "null") ?? false,
      required: config.required?.includes(name) ?? false,
    };
  });
}

function controlOf(schema: Schema): Control {
  if (schema.format?.endsWith("path")) return "file";
  if (schema.enum) return "choice";
  if (schema.type === "boolean") return "boolean";
  if (schema.type === "integer" || schema.type === "number") return "number";
  if (schema.type === "string") return "text";
  const items = schema.prefixItems ?? (schema.items ? [schema.items] : []);
  const isNumbers = items.length > 0 && items.every(({ type }) => type === "integer" || type === "number");
  return schema.type === "array" && isNumbers ? "numbers" : "json";
}

/** The config's defaults under those of a preset. */
export function baseConfig(schema: Schema, preset: Config = {}): Config {
  const defaults = Object.entries(schema.properties ?? {}).filter(([, { default: value }]) => value !== undefined);
  return { ...Object.fromEntries(defaults.map(([name, { default: value }]) => [name, value])), ...preset };
}

/** A value as a form shows it. */
export function textOf({ control }: FormField, value: unknown): string {
  if (value === undefined || value === null) return "";
  if (control === "numbers") return (value as number[]).join(", ");
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** The value of a text that was typed; Error with what is wrong. Where JSON is asked for, what is none is a string. */
export function valueOf({ name, control, nullable, required }: FormField, text: string): unknown {
  const typed = text.trim();
  if (typed === "" && control !== "text" && control !== "numbers") {
    if (required) throw new FieldError(name, "a value is needed");
    if (nullable) return null;
    if (control !== "json") throw new FieldError(name, "a value is needed");
  }
  if (control === "text") return typed === "" && nullable ? null : text;
  if (control === "choice" || control === "file") return typed;
  if (control === "boolean") return typed === "true";
  if (control === "number") return numberOf(name, typed);
  if (control === "numbers") {
    const parts = typed.replace(/^\[|\]$/g, "").split(",").filter((part) => part.trim());
    return parts.length === 0 && nullable ? null : parts.map((part) => numberOf(name, part.trim()));
  }
  try {
    return JSON.parse(typed) as unknown;
  } catch {
    if (/^[[{"]/.test(typed)) throw new FieldError(name, "this is no JSON");
    return typed;
  }
}

export class FieldError extends Error {
  constructor(
    readonly field: string,
    message: string,
  ) {
    super(`${field}: ${message}`);
  }
}

function numberOf(name: string, text: string): number {
  const value = Number(text);
  if (text === "" || !Number.isFinite(value)) throw new FieldError(name, `“${text}” is no number`);
  return value;
}

/** What a form says of a field beside its description: its range, how lists and files are typed. */
export function hintOf({ control, schema, nullable }: FormField): string {
  const { minimum, maximum } = schema;
  const parts = [(schema.description ?? "").replaceAll("`", "").replaceAll("Null:", "Empty:")];
  if (minimum !== undefined && maximum !== undefined) parts.push(`From ${minimum} to ${maximum}.`);
  else if (minimum !== undefined) parts.push(`At least ${minimum}.`);
  else if (maximum !== undefined) parts.push(`At most ${maximum}.`);
  if (control === "numbers") parts.push("Numbers with commas.");
  if (control === "json") parts.push("As JSON.");
  if (control === "file") parts.push("The id of a stored file (file-…).");
  if (nullable && control !== "boolean") parts.push("Empty for none.");
  return parts.filter(Boolean).join(" ");
}
