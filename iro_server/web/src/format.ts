// Numbers and times as people read them.

export const number = (value: number | null | undefined, digits = 3): string =>
  value === null || value === undefined || !Number.isFinite(value) ? "–" : value.toFixed(digits);

/** Of a mean: its standard error, and half of its 95 % interval, which jobs of earlier versions do not tell. */
export interface Uncertainty {
  error?: number | null;
  half_width?: number | null;
}

/** What ±, bands and bars show: without the interval 2 standard errors, which of few prompts is less. Null: unknown. */
export function halfWidth({ error, half_width }: Uncertainty): number | null {
  if (half_width !== undefined) return half_width;
  return typeof error === "number" ? 2 * error : null;
}

export const intervalName = (means: Uncertainty[]): string =>
  means.every(({ half_width }) => half_width !== undefined) ? "95 % interval" : "± 2 standard errors";

/** A mean ± what `halfWidth` gives. */
export function withInterval(mean: number | null | undefined, uncertainty: Uncertainty): string {
  const half = halfWidth(uncertainty);
  return number(mean) + (half === null ? "" : `\u00a0±\u00a0${number(half, 2)}`);
}

export const count = (value: number | null | undefined): string =>
  value === null || value === undefined ? "–" : value.toLocaleString("en");

export const clock = (unix: number): string => new Date(unix * 1000).toLocaleTimeString("en-GB");

export const date = (unix: number): string =>
  new Date(unix * 1000).toLocaleString("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

export function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** A grader by its name, where it has one, and its type. */
export const graderTitle = ({ type, name }: { type: string; name?: string }): string =>
  name && name !== type ? `${name} (${type})` : type;

/** An aligned model's name from where it differs: the base model's name, which comes first, hides the rest in a menu. */
export const nameWithout = (base: string, model: string): string =>
  model.startsWith(`ft:${base}:`) ? model.slice(`ft:${base}:`.length) : model;
