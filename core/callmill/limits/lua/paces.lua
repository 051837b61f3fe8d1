-- Part of reserve: limits that space starts evenly.
--
-- A pace's hash shows when the next start is due (tat). Each start occupies emission x units from it on. Where starts of one
-- group of calls wait for a limit of their own, the time they leave free on the shared paces is kept as holes, so that
-- other groups may start in it. Where the server's fixed windows are known (aligned), each window takes the whole amount,
-- spaced so that all of it arrives inside; turn is the window of the latest start and count what it holds.
--
-- Invariants: two starts are at least (units of the earlier) x emission apart, but for refunds; an aligned window holds no
-- more than the amount; tat never comes before the latest start.
local pace = {}
local MOST_HOLES, ROUNDING_US = 24, 1

function pace.refresh(x) -- idle time is no credit, and it eats the credit of refunds
  if x.tat < now then
    x.credit, x.tat, x.charge, x.busy = math.max(0, x.credit - (now - x.tat)), now, 0, now
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

function pace.due(x, t, units)
  if x.usable then return due_aligned(x, t, units) end
  local length = x.emission * units
  for _, hole in ipairs(x.holes) do
    local at = math.max(t, hole[1], x.block)
    if at + length <= hole[2] + ROUNDING_US then return at end
  end
  return math.max(t, x.tat, x.block)
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
    fill_hole(x, s, charge)
    return charge
  elseif free_from and s - math.max(free_from, x.tat) >= x.emission - ROUNDING_US and #x.holes < MOST_HOLES then
    x.holes[#x.holes + 1] = { math.max(free_from, x.tat), s }
    x.dug = true
  end
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

function pace.read_holes(x, packed)
  x.holes = {}
  for from, to in string.gmatch(packed or '', '([%d.]+) ([%d.]+)') do
    from, to = tonumber(from), tonumber(to)
    if to > now then x.holes[#x.holes + 1] = { from, to } end
  end
end

function pace.write(x)
  local fields = { 'tat', text(x.tat), 'credit', text(x.credit), 'charge', text(x.charge), 'busy', text(x.busy),
    'latest', text(x.latest) }
  local function add(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  if x.usable then
    add('turn', x.turn)
    add('count', x.count)
  end
  if x.dug then
    local packed = {}
    for i, hole in ipairs(x.holes) do packed[i] = text(hole[1]) .. ' ' .. text(hole[2]) end
    add('holes', table.concat(packed, ' '))
  end
  redis.call('HSET', x.key, unpack(fields))
end
