-- Shared by scripts that must know for which API a chunk waits: what a member and its line say. Their text is that of
-- line.py, and is taken apart nowhere else.

-- The line of a chunk, from its member.
local function line_of(member) return string.match(member, '([^/]*)$') end

-- The parts of a member: all up to the API's name, the name, the mark of the format, the identity of the API and the batch
-- that has the line to itself ('' = none), and the traffic class.
local function parts_of(member)
  local head, api, rest = string.match(member, '^([^/]*/[^/]*/)([^@]*)(.*)$')
  local format = string.match(rest, '^@f%d+') or ''
  rest = string.sub(rest, #format + 1)
  local identity = string.match(rest, '^@i(%x%x%x%x%x%x%x%x%x%x)') or ''
  if identity ~= '' then rest = string.sub(rest, #identity + 3) end
  local batch, class = string.match(rest, '^@b=([^@]*)(.*)$')
  return head, api, format, identity, batch or '', class or rest
end

-- The identity in what META's field api:NAME says, 'identity address'; '' where the batch is bound to any API of that name.
local function bound_identity(binding) return string.match(binding or '', '^(%x+) ') or '' end
