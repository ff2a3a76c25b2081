-- A directory entry and the attributes of the inode it names.
--
-- KEYS[1]: the directory's hash; ARGV[1]: the name. Answer: nil, or {entry, attribute record or nil}.
-- The attribute's key follows from the entry, so it cannot be announced in KEYS: one server only, no Cluster.
local entry = redis.call('HGET', KEYS[1], ARGV[1])
if not entry then return false end
if #entry ~= 9 then return { entry, false } end
local ino
local b1, b2, b3, b4, b5, b6, b7, b8 = string.byte(entry, 2, 9)
if b1 == 0 and b2 < 32 then
  -- Below 2^53 a double is exact.
  local high = (b1 * 256 + b2) * 65536 + b3 * 256 + b4
  ino = string.format('%.0f', high * 4294967296 + ((b5 * 256 + b6) * 256 + b7) * 256 + b8)
else
  -- Above (trash directories): three digits in base 10^7, byte by byte.
  local x, y, z = 0, 0, 0
  for i = 2, 9 do
    z = z * 256 + string.byte(entry, i)
    y = y * 256 + math.floor(z / 10000000)
    z = z % 10000000
    x = x * 256 + math.floor(y / 10000000)
    y = y % 10000000
  end
  ino = string.format('%.0f%07.0f%07.0f', x, y, z)
end
return { entry, redis.call('GET', 'i' .. ino) }
