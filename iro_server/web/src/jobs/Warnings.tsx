// What a job warns of, before its numbers: restarts, what was not done. Over-optimisation has a text of its own.

import type { JobEvent } from "../api";
import { clock } from "../format";
import { CODE } from "./OverOptimization";

const SHOWN = 3; // the newest; all are among the events

export function Warnings({ events }: { events: JobEvent[] }) {
  const warnings = events.filter(({ level, data }) => level === "warn" && data.code !== CODE);
  if (warnings.length === 0) return null;
  return (
    <section class="warn warnings" aria-label="Warnings">
      <ul>
        {warnings.slice(0, SHOWN).map((event) => (
          <li key={event.id} class="text">
            <time dateTime={new Date(event.created_at * 1000).toISOString()}>{clock(event.created_at)}</time>{" "}
            {event.message}
          </li>
        ))}
      </ul>
      {warnings.length > SHOWN && <p class="small">{warnings.length - SHOWN} earlier ones are among the events.</p>}
    </section>
  );
}
