// Small pieces that several pages show.

import type { ComponentChildren } from "preact";
import { useRef, useState } from "preact/hooks";
import type { Status } from "./api";

const STATUS: Record<Status | "in_progress", string> = {
  validating_files: "checking files",
  queued: "waiting",
  running: "running",
  in_progress: "running",
  paused: "paused",
  succeeded: "succeeded",
  failed: "failed",
  cancelled: "cancelled",
};

export const Badge = ({ status }: { status: keyof typeof STATUS }) => (
  <span class={`badge ${status}`}>{STATUS[status]}</span>
);

export const Fact = ({ name, value }: { name: string; value: string }) => (
  <div>
    <dt>{name}</dt>
    <dd class="text" title={value}>
      {value}
    </dd>
  </div>
);

export function Problem({ error, again }: { error: Error; again?: () => void }) {
  return (
    <div class="problem" role="alert" tabIndex={0}>
      <span class="text">{error.message}</span>
      {again && (
        <button type="button" onClick={again}>
          Try again
        </button>
      )}
    </div>
  );
}

export function Field({
  id,
  label,
  hint,
  children,
}: {
  id: string;
  label: string;
  hint?: string;
  children: ComponentChildren;
}) {
  return (
    <div class="field">
      <label for={id}>{label}</label>
      {children}
      {hint && (
        <small id={`${id}-hint`} class="faint">
          {hint}
        </small>
      )}
    </div>
  );
}

/** For after a control that goes away, as a button that has done its work: else the page's start has the focus. */
export const focusHeading = (): void => document.querySelector<HTMLElement>("main h1")?.focus();

/** A button that acts on its second click, whose label says what it will do. */
export function ConfirmedButton({
  label,
  confirmation,
  disabled,
  onConfirm,
}: {
  label: string;
  confirmation: string;
  disabled?: boolean;
  onConfirm: () => void;
}) {
  const [asks, setAsks] = useState(false);
  const button = useRef<HTMLButtonElement>(null);
  const keep = () => {
    setAsks(false);
    button.current!.focus(); // "Keep it" goes away
  };
  return (
    <>
      <button class="danger" ref={button} disabled={disabled} onClick={() => (asks ? onConfirm() : setAsks(true))}>
        {asks ? confirmation : label}
      </button>
      {asks && (
        <button disabled={disabled} onClick={keep}>
          Keep it
        </button>
      )}
    </>
  );
}
