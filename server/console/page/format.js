// Numbers as people read them. What is null is not known; nothing here turns it into 0.

export const UNKNOWN = "not known";
const known = (show) => (value, ...more) => (value === null || value === undefined ? UNKNOWN : show(value, ...more));

/** 1,234,567 */
export const count = known((value) => Math.round(value).toLocaleString("en"));

/** 1.23 M: three digits and a unit of thousands. */
export const short = known((value) => {
  for (const [size, unit] of [[1e12, " T"], [1e9, " G"], [1e6, " M"], [1e4, " k"]]) {
    if (Math.abs(value) >= size) return Number((value / (unit === " k" ? 1e3 : size)).toPrecision(3)).toLocaleString("en") + unit;
  }
  return value.toLocaleString("en", { maximumFractionDigits: Math.abs(value) < 10 ? 1 : 0 });
});

/** Dollars with cents, or with three digits that mean something where it is less than one. */
export const usd = known((value) => {
  if (value === 0) return "$0";
  if (Math.abs(value) >= 1) return `$${value.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`;
  const digits = Math.min(12, 2 - Math.floor(Math.log10(Math.abs(value))));
  return `$${Number(value.toPrecision(3)).toFixed(digits).replace(/0+$/, "").replace(/\.$/, "").replace(/\.(\d)$/, ".$10")}`;
});

/** 85 ms, 1.24 s, 3 min 20 s */
export const seconds = known((value) => {
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  if (value < 120) return `${value.toFixed(value < 10 ? 2 : 1)} s`;
  return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
});

export const percent = known((value) => value > 0 && value < 0.0005 ? "<0.1%" : `${(value * 100).toFixed(Math.abs(value) < 0.0995 ? 1 : 0)}%`);

export const joules = known((value) => `${short(value)} J`);

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const second = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const at = (formatter) => (ts) => formatter.format(new Date(ts * 1000));

export const timeOfDay = at(clock);
export const exactTime = at(second);
export const dayOf = at(day);

/** The time alone for today, else with its day. */
export function moment(ts, now = Date.now() / 1000) {
  return dayOf(ts) === dayOf(now) ? exactTime(ts) : `${dayOf(ts)} ${timeOfDay(ts)}`;
}
