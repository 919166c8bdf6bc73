import time, json, sys, threading
from pathlib import Path
from PIL import Image
sys.path.insert(0,"/work/main/tests/plugins")
def rec(n,**k): return {"prompt_index":n,"image_index":0,"prompt":"a prompt "*20,"model":"m","usd":0.01,"path":f"/x/{n}.png","bytes":10,"sha256":"0"*64,"width":1024,"height":1024,"mime_type":"image/png",**k}
def test_big(forged, run_dag, visit, painted, tmp_path, capsys):
    g=forged({"manifest":str(tmp_path/"metadata.jsonl"),"count":5000},made=5000,requested=5000,manifest=str(tmp_path/"metadata.jsonl"))
    ids={**g.ids,"task_id":"paint","map_index":-1}
    (tmp_path/"metadata.jsonl").write_text("".join(json.dumps({"file_name":f"{n}.png",**rec(n),**ids,"created_at":"2026"})+"\n" for n in range(5000)))
    ann=visit()
    out=[]
    for label in ("cold","warm"):
        t=time.time(); r=ann.get(g.task()[0],params=g.task()[1]); out.append(("5000 manifest task page",label,round(time.time()-t,3),r.text.count('class="card"'),len(r.content)))
    from airflow.sdk import DAG, task
    with DAG("many_mapped",schedule=None) as dag:
        @task
        def paint(n, ti=None):
            ti.xcom_push(key="images",value=[rec(n)]); ti.xcom_push(key="summary",value={"requested":1,"made":1,"usd_spent":0.01})
        paint.expand(n=list(range(300)))
    run=run_dag(dag); ids={"dag_id":"many_mapped","run_id":run.run_id}
    for label in ("cold","warm"):
        t=time.time(); r=ann.get("/imagen/run",params=ids); out.append(("300 mapped run page",label,round(time.time()-t,3),r.text.count('class="card"')))
    g=painted(prompt=[f"p{n}" for n in range(60)], output_path=str(tmp_path/"p"), concurrency=16)
    for label in ("cold","warm"):
        t=time.time()
        for n in range(60): assert ann.get(g.file(n)[0],params=g.file(n,size="thumbnail")[1]).status_code==200
        out.append(("60 thumbs (128px originals) one after the other",label,round(time.time()-t,3)))
    from airflow_provider_imagen.storage.convert import make_thumbnail
    import io,os
    im=Image.effect_noise((1024,1024),60).convert("RGB"); b=io.BytesIO(); im.save(b,"PNG"); t=time.time(); make_thumbnail(b.getvalue(),pixels=384); out.append(("one thumb of 1024px",round(time.time()-t,3),len(b.getvalue())))
    with capsys.disabled(): print(*out,sep="\n")
