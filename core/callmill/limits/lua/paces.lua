-- Part of reserve: limits that space starts evenly.
--
-- A pace's hash shows when the next start is due (tat). Each start occupies emission x units from it on. Where starts of one
-- group of calls wait for a limit of their own, the time they leave free on the shared paces is kept as holes, so that
-- other groups may start in it. Where the server's fixed windows are known (aligned), each window takes the whole amount,
-- spaced so that all of it arrives inside; turn is the window of the latest start and count what it holds.
--
-- A call is paid for by the distance to the next one, so a call of one unit never makes a window too full, but a call of
-- several may: it ends a window that holds as much as it may already. While such calls are about, the log tells the units
-- that started in the last window, in steps, and the call waits until the window has room for it. A bucket is to hold as
-- much when it comes, however late the calls before it were.
--
-- Invariants: two starts are at least (units of the earlier) x emission apart, but for refunds; no window, widened by the
-- guard, holds more units than the amount; an aligned window holds no more than the amount; tat never comes before the
-- latest start.
local pace = {}
local MOST_HOLES, ROUNDING_US, LOG_STEPS = 24, 1, 48
local REMEMBERED_US = 60000000 -- what an API took of an idle pace longer ago shows nothing of what it takes

function pace.refresh(x) -- idle time is no credit, and it eats the credit of refunds
  if x.tat < now then
    x.credit, x.tat, x.charge, x.busy = math.max(0, x.credit - (now - x.tat)), now, 0, now
    if now - x.taken_from > REMEMBERED_US then x.taken, x.taken_from = 0, now end
  end
end

local function due_aligned(x, t, units)
  local from = math.max(t, x.tat, x.block)
  local window = math.max(math.floor((from - x.aligned) / x.window), x.turn)
  for _ = 1, 3 do
    local opens = x.aligned + window * x.window + x.blur
    local at = math.max(from, opens)
    local used = window == x.turn and x.count or 0
    if at <= opens + x.usable and (used == 0 or used + units <= x.amount * x.factor) then return at end
    window = window + 1
  end
  return x.aligned + window * x.window + x.blur
end

local function seeded_log(x, newest) -- what started up to `newest` is unknown: assume as much as the pace allows
  local log, units = {}, math.ceil(x.span / x.emission / LOG_STEPS * 100) / 100 -- rounded up to what text() keeps
  for i = LOG_STEPS - 1, 0, -1 do
    log[#log + 1] = { newest - i * x.span / LOG_STEPS, units }
  end
  return log
end

local function paid_log(x) -- the same where the latest start may be heavy: it fits the pace only once it is paid for
  return seeded_log(x, math.max(x.latest, x.tat - x.emission))
end

local function due_heavy(x, t, units)
  local from = math.max(t, x.tat, x.block)
  if not x.strict then -- a bucket: late calls before it may have found it full, and it holds so much less now
    local slack = x.slack - (units - 1) * x.window / x.amount
    return math.max(from, x.tat + math.max(0, x.force - math.max(0, slack)) - math.max(0, x.force - x.slack))
  end
  x.log = x.log or seeded_log(x, x.latest)
  local held, most, spaced = 0, (x.span + ROUNDING_US) / x.emission - units, x.tat + (units - 1) * x.emission
  for i = #x.log, 1, -1 do
    local entry = x.log[i]
    if entry[1] + x.span <= from then break end
    held = held + entry[2]
    if held > most then return math.max(from, math.min(spaced, entry[1] + x.span)) end
  end
  return from
end

function pace.due(x, t, units)
  if x.usable then return due_aligned(x, t, units) end
  if units > 1 and x.heavy then return due_heavy(x, t, units) end
  local length = x.emission * units
  for _, hole in ipairs(x.holes) do
    local at = math.max(t, hole[1], x.block)
    if at + length <= hole[2] + ROUNDING_US then return at end
  end
  return math.max(t, x.tat, x.block)
end

local function log_start(x, s, units)
  if not x.log then return end
  local at, step = #x.log, x.span / LOG_STEPS
  while at > 0 and x.log[at][1] > s do at = at - 1 end
  local entry = x.log[at]
  if entry and math.floor(entry[1] / step) == math.floor(s / step) then
    entry[1], entry[2] = s, entry[2] + units -- in one step the latest start counts for all: that is the safe side
  else
    table.insert(x.log, at + 1, { s, units })
  end
end

local function fill_hole(x, s, length)
  for i, hole in ipairs(x.holes) do
    if hole[1] <= s and s + length <= hole[2] + ROUNDING_US then
      table.remove(x.holes, i)
      if hole[2] - s - length >= x.emission - ROUNDING_US then table.insert(x.holes, i, { s + length, hole[2] }) end
      if s - hole[1] >= x.emission - ROUNDING_US then table.insert(x.holes, i, { hole[1], s }) end
      x.dug = true
      return
    end
  end
end

function pace.spend(x, s, units, free_from) -- free_from: since when the shared limits would have let the call start
  local charge = math.ceil(x.emission * units * 4) / 4
  if x.usable then
    local window = math.floor((s - x.aligned) / x.window)
    if window ~= x.turn then x.turn, x.count = window, 0 end
    x.count = x.count + units
  elseif s < x.tat then
    log_start(x, s, units)
    fill_hole(x, s, charge)
    return charge
  elseif x.heavy and units > 1 then
    x.heavy_at = s
    x.holes, x.dug = {}, true -- what starts before it would take the room that it waits for
  elseif free_from and s - math.max(free_from, x.tat) >= x.emission - ROUNDING_US and #x.holes < MOST_HOLES then
    x.holes[#x.holes + 1] = { math.max(free_from, x.tat), s }
    x.dug = true
  end
  log_start(x, s, units)
  x.charge = math.max(x.charge, charge)
  local paid = math.min(x.credit, charge)
  x.credit = x.credit - paid
  x.tat, x.latest = math.max(x.tat, s) + charge - paid, math.max(x.latest, s)
  return charge
end

function pace.settle(x, units, start)
  if x.usable and math.floor((start - x.aligned) / x.window) == x.turn then x.count = math.max(0, x.count + units) end
  x.charge = x.charge + math.max(0, units * x.emission)
  local owed = units * x.emission - x.credit
  if owed >= 0 then
    x.tat, x.credit = x.tat + owed, 0
    return
  end
  -- Refunds bring the next start forward, not before what is granted; what is left pays for later calls. That bank is
  -- bounded, for windows do not forget.
  local sooner = math.min(-owed, math.max(0, x.tat - math.max(now, x.latest)))
  x.tat, x.credit = x.tat - sooner, math.min(-owed - sooner, x.window / 20)
end

local function pairs_after(packed, at, after) -- the pairs of numbers whose first or second, says at, is later than that
  local found = {}
  for first, second in string.gmatch(packed, '([%d.]+) ([%d.]+)') do
    local pair = { tonumber(first), tonumber(second) }
    if pair[at] > after then found[#found + 1] = pair end
  end
  return found
end

function pace.read_lists(x, holes, log, heavy, lost) -- lost: what was granted is unknown
  x.holes, x.heavy_at = pairs_after(holes or '', 2, now), tonumber(heavy or 0)
  x.logged = x.strict and log and log ~= ''
  if x.logged and x.heavy_at > now - 2 * x.span then x.log = lost and paid_log(x) or pairs_after(log, 1, now - x.span) end
end

function pace.hear(x, latest, weight) -- a survivor reports its latest and its heaviest start
  local charge = x.emission * weight
  local paid = latest + charge
  x.charge = math.max(x.charge, charge) -- a pause takes back what is to come, and leaves what this start may still owe
  if paid <= x.tat and latest <= x.latest then return end
  x.tat, x.latest = math.max(x.tat, paid), math.max(x.latest, latest)
  if x.strict and (weight > 1 or x.log) then -- these starts are missing from the log
    x.heavy_at, x.log = math.max(x.heavy_at, x.latest), paid_log(x)
  end
end

function pace.write(x)
  local fields = { 'tat', text(x.tat), 'credit', text(x.credit), 'charge', text(x.charge), 'busy', text(x.busy),
    'latest', text(x.latest), 'taken', x.taken, 'taken_from', text(x.taken_from) }
  local function add(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  if x.usable then
    add('turn', x.turn)
    add('count', x.count)
  end
  local function add_list(name, list)
    local packed = {}
    for i, pair in ipairs(list) do packed[i] = text(pair[1]) .. ' ' .. text(pair[2]) end
    add(name, table.concat(packed, ' '))
  end
  if x.dug then add_list('holes', x.holes) end
  if x.log or x.logged then
    add_list('log', x.log or {})
    add('heavy_at', text(x.heavy_at))
  end
  redis.call('HSET', x.key, unpack(fields))
end
