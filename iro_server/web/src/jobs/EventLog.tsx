// The job's events, newest first.

import { useState } from "preact/hooks";
import { clock } from "../format";
import { Problem } from "../parts";
import type { Events } from "./events";

const SHOWN = 200; // at first

export function EventLog({ events, error, again }: Events) {
  const [all, setAll] = useState(false);
  const shown = all ? events : events.slice(0, SHOWN);
  return (
    <section class="card" aria-labelledby="events">
      <h2 id="events">Events</h2>
      {error && <Problem error={error} again={again} />}
      {events.length === 0 && <p class="faint">None yet.</p>}
      <ol class="events" tabIndex={0} aria-label="Events, newest first" aria-live="polite" aria-relevant="additions">
        {shown.map((event) => (
          <li key={event.id} class={event.level}>
            <time dateTime={new Date(event.created_at * 1000).toISOString()}>{clock(event.created_at)}</time>
            {event.level !== "info" && <strong>{event.level === "warn" ? "warning" : event.level}</strong>}
            <span class="text">{event.message}</span>
          </li>
        ))}
      </ol>
      {shown.length < events.length && <button onClick={() => setAll(true)}>Show all {events.length} events</button>}
    </section>
  );
}
